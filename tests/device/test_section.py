"""Device reports as tables: from a real build.py run against the stand-ins."""

from pathlib import Path

import pytest

from tests.device.packages import device_report, make_package, run_build
from vitdeploy.device import device_section
from vitdeploy.report.tables import Table

STRONG = "model.int8.strong.onnx"


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(
        tmp_path_factory.mktemp("section") / "trt", [("fp16", "strong"), ("int8", "strong")]
    )


def test_a_build_has_device_engines_and_layers(folder: Path):
    assert run_build(folder).returncode == 0
    device, engines, layers = device_section(device_report(folder))
    assert ["TensorRT", "10.3.0"] in texts(device)
    assert ["Compute capability", "8.7"] in texts(device)
    fp16, int8 = texts(engines)
    assert fp16[:3] == ["model", "fp16", "faithful"]
    assert int8[:3] == ["model", "int8", "kept"]
    assert (fp16[4], int8[4]) == ("2.00 ms", "1.00 ms")
    assert int8[-2:] == ["1 of 1", "1"]
    assert texts(layers)[0][0] == "_gemm_mha_v2_myl0"  # 0.5 ms, the slowest first
    assert texts(layers)[0][-1] == "66.7 %"
    for table in (device, engines, layers):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_mismatch_is_shown_with_its_words(folder: Path):
    assert run_build(folder, "--engine", "int8", faults=[f"nan:{STRONG}"]).returncode == 10
    _, engines = device_section(device_report(folder))
    (row,) = engines.rows
    assert (row[2].text, row[2].tone) == ("differs from the model", "bad")
    assert row[3].text == "NaN"
    assert "NaN or infinite" in engines.notes[row[2].note - 1]


def test_what_did_not_build_has_no_figures(folder: Path):
    run_build(folder, "--engine", "int8", version="11.4.0", faults=[f"no_build:{STRONG}"])
    _, engines = device_section(device_report(folder))
    assert texts(engines)[0][2:] == ["failed", "-", "-", "-", "-", "-", "-", "-", "-"]


def test_without_timing_there_are_dashes(folder: Path):
    run_build(folder, "--no-timing")
    tables = device_section(device_report(folder))
    assert len(tables) == 2
    assert [row[4:7] for row in texts(tables[1])] == [["-"] * 3] * 2


def test_what_is_unknown_is_a_dash_with_a_note(folder: Path):
    run_build(folder, "--no-timing")
    device = device_section(device_report(folder))[0]
    row = next(row for row in device.rows if row[0].text == "GPU")
    assert row[1].text == "\N{EM DASH}"
    assert device.notes[row[1].note - 1] == "GPU: libcuda does not say"
    assert "JetPack" not in [row[0].text for row in device.rows]  # no Jetson, no such question
