"""The matrix of encoders: its rows are real, a few run here, all of them in `slow`."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.families.folders import write_folder
from benchmarks.families.measuring import Effort, measure
from benchmarks.families.page import LEAST_COSINE, page_from_results, works
from benchmarks.families.rows import ROWS, Row
from vitdeploy.models import resolve

ROOT = Path(__file__).resolve().parents[1]
KEYS = {row.key: row for row in ROWS}
FIRST = [row.key for row in ROWS if row.rank == "first"]


def small(key: str, size: int, **arguments: object) -> Row:
    """A row of the matrix, smaller still, at one size."""
    row = KEYS[key]
    more = {**row.arguments, **arguments}
    return dataclasses.replace(row, size=size, second_size=None, arguments=more)


REPRESENTATIVE = (
    small("timm:beit_base_patch16_224", 64, embed_dim=64, depth=2, num_heads=2),
    small("timm:hiera_tiny_224", 64, embed_dim=16, num_heads=2, stages=(1, 2), q_pool=1),
    small("transformers:siglip2_vision_model", 64, hidden_size=64, num_hidden_layers=2),
)


def test_rows_are_named_once_and_exist(tmp_path: Path):
    assert len(KEYS) == len(ROWS)
    for number, row in enumerate(ROWS):
        assert row.second_size is not None or row.fixed, f"{row.key}: why one size?"
        assert row.second_size != row.size
        assert resolve(str(write_folder(row, tmp_path / str(number)))).family


@pytest.mark.parametrize("row", REPRESENTATIVE, ids=lambda row: row.architecture)
def test_a_few_export_and_are_recognised(row: Row):
    result = measure(row, Effort(stages=("export",)))
    assert not result.failures
    (size,) = result.sizes
    assert size.pixels == row.size
    # 1e-4 is the promise; two blocks of float32 sums give 1e-6
    assert size.parity < 2e-5
    assert size.torch_attention > 0
    assert size.graph_attention + len(size.unrecognised) >= size.torch_attention


def test_a_row_that_cannot_be_built_is_a_failure_of_its_own():
    result = measure(small("timm:beit_base_patch16_224", 64, no_such_argument=1), Effort())
    assert "no_such_argument" in result.failures["load"]
    assert not works(result.to_dict())


def result_of(row: Row, **changes: object) -> dict[str, object]:
    size = {"pixels": 224, "parity": 2e-6, "tolerance": 1e-4, "nodes": 92, "bytes": 7_000_000}
    size |= {"graph_attention": 3, "torch_attention": 3, "unrecognised": []}
    int8 = {"cosine": 0.999, "sqnr_db": 27.0, "bytes": 2_000_000, "findings": []}
    int8["search_seconds"] = 3.0
    int8 |= {"int8_macs_percent": 99.0, "noisiest": [["blocks.1.mlp.fc2", 0.004]]}
    unlinted = {**int8, "lint_errors": None, "lint_warnings": None}
    targets = [{**unlinted, "target": name} for name in ("onnx", "openvino", "int4")]
    targets.append({**int8, "target": "trt-rtx", "lint_errors": 0, "lint_warnings": 1})
    prunable = {"heads": 3, "mlps": 3, "notes": [], "removed_percent": 25.0, "parity": 2e-6}
    base = {"key": row.key, "sizes": [size], "quantised": targets, "prunable": prunable}
    base |= {"failures": {}, "seconds": 20.0, "peak_bytes": 1_300_000_000, "parameters": 1}
    return json.loads(json.dumps({**base, **changes}))


def test_the_page_tells_what_works_what_not_and_why():
    good, noisy, failing, *_ = ROWS
    bad = result_of(noisy)
    bad["quantised"][0] |= {"cosine": 0.98, "search_seconds": 120.0}
    bad["sizes"][0] |= {"parity": 2e-4, "tolerance": 4e-4}
    page = page_from_results(
        {
            good.key: result_of(good),
            noisy.key: bad,
            failing.key: result_of(failing, failures={"onnx": "ExportError: no such thing"}),
        }
    )
    assert f"1 rows work of {len(FIRST)} named (3 were run)" in page
    assert "Worst centred INT8 cosine: 0.9800" in page
    assert "| 0.9800, 27 dB* | 0.9990, 27 dB |" in page
    assert "onnx 0.9800; noise over signal" in page
    assert "`blocks.1.mlp.fc2` 4.0e-03" in page
    assert "onnx: ExportError: no such thing" in page
    assert "2.0e-04 at 224 pixels: torch itself, in float32, is 1.0e-04 from what" in page
    assert f"| {good.name} | `timm:{good.architecture}` | 224 | 2e-06 | 0.9990, 27 dB |" in page
    assert "not run" in page


def test_the_page_of_the_documents_is_what_its_results_say():
    results = {r["key"]: r for r in json.loads((ROOT / "docs/families.json").read_text())}
    assert (ROOT / "docs/families.md").read_text() == page_from_results(results)
    assert list(results) == [row.key for row in ROWS]
    assert not any(result["failures"] for result in results.values())
    assert all(size["parity"] <= size["tolerance"] for r in results.values() for size in r["sizes"])


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": {"prune": "CompressionError: no"}},
        {"sizes": []},
        {"quantised": []},
        {"prunable": None},
    ],
)
def test_what_is_missing_or_failed_does_not_work(changes):
    assert works(result_of(ROWS[0]))
    assert not works(result_of(ROWS[0], **changes))


def test_an_unknown_row_is_refused():
    command = [sys.executable, "-m", "benchmarks.families", "--only", "timm:no_such_model"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "no such rows: timm:no_such_model" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_every_row_runs_and_works_where_the_page_says_so(key: str):
    documented = {r["key"]: r for r in json.loads((ROOT / "docs/families.json").read_text())}
    result = measure(KEYS[key], Effort()).to_dict()
    assert not result["failures"]
    assert works(result) or not works(documented[key])
    before = {item["target"]: item["cosine"] for item in documented[key]["quantised"]}
    for item in result["quantised"]:
        # a search bounded in seconds does not end at the same graph on every machine
        assert item["cosine"] >= min(LEAST_COSINE, before[item["target"]] - 0.02)
        assert not item["lint_errors"]
    assert all(size["parity"] <= size["tolerance"] for size in result["sizes"])
