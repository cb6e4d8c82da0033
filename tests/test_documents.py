"""What a run writes beside its artefacts says what was found, and what was not."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import yaml

from tests.small_models import loaded_from_part
from vitdeploy.bundle import Artifact, BundleWriter, TensorInfo, load_bundle, sha256_from_file
from vitdeploy.compress.int8 import Int8Result, SearchCost
from vitdeploy.documents import (
    assemble_report,
    latency_row,
    report_of_bundle,
    tiling_of,
    write_documents,
)
from vitdeploy.errors import UsageError
from vitdeploy.evaluation import fidelity_rows
from vitdeploy.findings import REFERENCE, Compressed, Findings, Measured
from vitdeploy.image_sets import choose_sets
from vitdeploy.measure import StageRecord, Timing
from vitdeploy.models.description import ModelDescription, describe
from vitdeploy.models.spec import TensorSpec
from vitdeploy.onnx_export import Parity
from vitdeploy.recipe import Int8Choices, Recipe, recipe_from_dict, recipe_from_yaml
from vitdeploy.report import read_report

LOGITS = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)


def recipe(**sections) -> Recipe:
    given = {"model": {"source": "vit-tiny"}, "precision": "int8", "output": "/some/where"}
    return recipe_from_dict({**given, **sections})


def timed(target: str, latency_ms: float, count: int = 200, part: str = "model") -> Measured:
    samples = np.full(count, latency_ms)
    return Measured(target, part, "an engine 1.0", 2, "int8", Timing(samples, batch=4))


def artifact(folder: Path) -> Artifact:
    path = folder / "onnx" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 400)
    return Artifact(
        part="model",
        target="onnx",
        precision="int8",
        path=path,
        sha256=sha256_from_file(path),
        bytes=400,
        parent="0" * 64,
        inputs=(TensorInfo("pixel_values", ("batch", 3, 32, 32)),),
        outputs=(TensorInfo("logits", ("batch", 3)),),
        settings={},
        files=(path,),
    )


def quantized() -> Int8Result:
    return Int8Result(
        model=ir.Model(ir.Graph([], [], nodes=[]), ir_version=10),
        quantized=("fc2",),
        kept_float=("fc1",),
        int8_macs_percent=97.0,
        choices=Int8Choices(kept_float=("fc1",)),
        noise={"fc1": 3.0, "fc2": 1.0},
        search=SearchCost(3.0, 12, ("GPTQ rounding of 4 products",)),
    )


def findings(folder: Path, latency: list[Measured]) -> Findings:
    return Findings(
        compressed=[Compressed(artifact(folder), quantized())],
        reference_bytes=1000,
        fidelity=fidelity_rows(("onnx", "model"), {"logits": LOGITS}, {"logits": LOGITS}, None),
        parity=[Parity("model", 2, 1e-6, 2e-6)],
        latency=latency,
        stages=[StageRecord("load", 1.5, 10**8)],
    )


@pytest.fixture(scope="module")
def description() -> ModelDescription:
    from tests.small_models import SMALL_VIT, timm_part

    return describe(loaded_from_part(timm_part("vit_tiny_patch16_224", **SMALL_VIT)))


def assemble(folder: Path, description: ModelDescription, asked: Recipe, latency: list[Measured]):
    loaded = loaded_from_part(notes=("a note of the model's",))
    images = choose_sets(asked, loaded)
    return assemble_report(asked, loaded, description, images, findings(folder, latency))


def test_p99_needs_a_hundred_samples():
    row = latency_row(timed("onnx", 2.0, count=100))
    assert (row.p50_ms, row.p99_ms, row.throughput_ips) == (2.0, 2.0, 2000.0)
    few = latency_row(timed("onnx", 2.0, count=99))
    assert few.p99_ms is None
    assert few.p99_ms_reason == "99 samples; 100 are needed"


def test_the_report_has_what_was_found(tmp_path: Path, description: ModelDescription):
    latency = [timed(REFERENCE, 3.0), timed("onnx", 1.5)]
    asked = recipe(gates={"min_speedup": 1.9, "max_latency_ms": 1.0})
    report = assemble(tmp_path, description, asked, latency)
    assert report.speedup == {"onnx": 2.0}
    assert report.size_bytes == {REFERENCE: 1000, "onnx": 400}
    assert {gate.name: gate.passed for gate in report.gates} == {
        "min_speedup:onnx": True,
        "max_latency_ms:onnx": False,
    }
    (row,) = report.artifacts
    assert row.path == "onnx/model.onnx"
    assert row.int8_macs_percent == 97.0
    assert [stage.name for stage in report.stages] == ["load"]
    (search,) = report.search
    assert (search.target, search.part, search.seconds) == ("onnx", "model", 3.0)
    assert (search.candidates, search.skipped) == (12, ("GPTQ rounding of 4 products",))
    assert report.parity[0].passed
    assert "a note of the model's" in report.notes
    assert "calibration: generic" in report.stamps


def test_what_was_not_measured_is_null_with_a_reason(tmp_path: Path, description: ModelDescription):
    report = assemble(tmp_path, description, recipe(gates={"min_speedup": 1.0}), [])
    assert report.speedup == {"onnx": None}
    assert report.speedup_reason == {"onnx": "latency was not measured"}
    assert not report.passed


def test_latencies_of_parts_add_up(tmp_path: Path, description: ModelDescription):
    parts = ("encoder", "decoder")
    latency = [timed(REFERENCE, 3.0, part=part) for part in parts]
    latency += [timed("onnx", 1.0, part=part) for part in parts]
    report = assemble(tmp_path, description, recipe(gates={"max_latency_ms": 2.0}), latency)
    assert report.speedup == {"onnx": 3.0}
    assert report.gates[0].value == 2.0


@pytest.mark.parametrize(("latency_ms", "slower"), [(4.0, True), (3.05, False), (2.0, False)])
def test_an_artefact_that_is_slower_is_said_to_be(
    latency_ms: float, slower: bool, tmp_path: Path, description: ModelDescription
):
    """3.05 against 3 ms is noise."""
    latency = [timed(REFERENCE, 3.0), timed("onnx", latency_ms)]
    report = assemble(tmp_path, description, recipe(), latency)
    assert any("slower than FP32" in note for note in report.notes) is slower


def test_the_documents_of_a_bundle(tmp_path: Path, description: ModelDescription):
    loaded = loaded_from_part()
    asked = recipe()
    images = choose_sets(asked, loaded)
    with BundleWriter(tmp_path / "out") as writer:
        found = findings(writer.folder, [timed(REFERENCE, 3.0), timed("onnx", 1.5)])
        report = assemble_report(asked, loaded, description, images, found)
        writer.add_artifact(found.compressed[0].artifact)
        write_documents(writer, report, loaded, asked)
    bundle = load_bundle(tmp_path / "out")
    assert read_report(tmp_path / "out" / "report.json") == report
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    assert "small" in (tmp_path / "out" / "model_card.md").read_text()
    assert bundle.manifest.label_names == ("red", "green", "blue")
    assert bundle.manifest.stamps == report.stamps
    assert bundle.manifest.preprocess["size"] == [32, 32]
    again = recipe_from_yaml(tmp_path / "out" / "recipe.yaml")
    # where this run wrote to is nothing a later run should repeat
    assert again.output is None
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["output"] is None


def test_a_check_says_what_it_did_not_measure(tmp_path: Path, description: ModelDescription):
    test_the_documents_of_a_bundle(tmp_path, description)
    report = report_of_bundle(load_bundle(tmp_path / "out"), (), ())
    assert report.model.image_size == (32, 32)
    assert report.model.parameters is None
    assert report.calibration is None
    assert report.size_bytes == {"onnx": 400}
    assert report.precision.requested == "int8"


def test_tiles_are_for_encoders():
    outputs = (TensorSpec("feature_map", ("batch", 8, 4, 4)),)
    part = dataclasses.replace(loaded_from_part().parts[0], outputs=outputs)
    encoder = loaded_from_part(part, task="features", label_names=())
    tiling = tiling_of(recipe(export={"tiles": 6}), encoder)
    assert tiling is not None
    assert (tiling.tile_size, tiling.max_tiles, tiling.thumbnail) == (32, 6, True)
    assert tiling_of(recipe(), loaded_from_part()) is None
    with pytest.raises(UsageError, match=r"--tiles 6: 'small' answers for a whole picture"):
        tiling_of(recipe(export={"tiles": 6}), loaded_from_part())
