"""`vitdeploy lint`: exit codes, the table, the JSON."""

import json
from pathlib import Path

import onnx
import pytest

from tests.lint import cases, graphs
from vitdeploy.cli import exit_code_from
from vitdeploy.errors import ExportError, ModelError, UsageError
from vitdeploy.lint import RULES


def write(folder: Path, number: int, kind: str) -> str:
    """Write the `bad` or the `good` graph of a rule."""
    path = folder / f"{kind}-{number}.onnx"
    onnx.save(getattr(cases.CASES[number - 1], kind)(), path)
    return str(path)


def test_errors_leave_with_the_code_of_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert exit_code_from(["lint", write(tmp_path, 1, "bad")]) == ExportError.exit_code
    captured = capsys.readouterr()
    text = " ".join(captured.err.split())
    assert captured.out == ""
    assert "its zero point is 3, not 0" in text
    assert "rule 1: quantise symmetrically" in text
    assert "breaks rules of TensorRT 10.3 in 2 place(s): rules 1 (zero-point)" in text


def test_the_table_shows_the_first_findings_of_a_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    chain = "".join(f"x{i + 1} = Unique(x{i}) " for i in range(11))
    path = tmp_path / "chain.onnx"
    onnx.save(graphs.graph(f"g (float[4] x0) => (float[n] x11) {{ {chain} }}"), path)
    assert exit_code_from(["lint", str(path)]) == ExportError.exit_code
    text = capsys.readouterr().err
    assert text.count("no importer for Unique") == 8
    assert "and 3 more" in text


def test_warnings_leave_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert exit_code_from(["lint", write(tmp_path, 22, "bad"), "--target", "trt"]) == 0
    assert "513 tokens" in capsys.readouterr().err


def test_json_alone_is_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["lint", write(tmp_path, 13, "bad"), "--json", "--trt-version", "11.4"]
    assert exit_code_from(arguments) == ExportError.exit_code
    report = json.loads(capsys.readouterr().out)
    assert (report["target"], report["trt_version"]) == ("trt", "11.4")
    assert report["file"] == "bad-13.onnx"
    assert (report["errors"], report["warnings"]) == (1, 0)
    assert [rule["number"] for rule in report["rules"]] == [rule.number for rule in RULES]
    broken = report["rules"][13]
    assert (broken["id"], broken["severity"]) == ("layernorm-outputs", "error")
    assert broken["verdict"] == "fail"
    (finding,) = broken["findings"]
    assert set(finding) == {"node", "why", "mend", "severity"}
    assert {rule["verdict"] for rule in report["rules"]} == {"pass", "fail", "not_applicable"}


def test_rtx_is_linted_as_its_own_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["lint", write(tmp_path, 1, "good"), "--target", "trt-rtx", "--json"]
    assert exit_code_from(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["target"], report["trt_version"]) == ("trt-rtx", "1.7")


def test_cards(tmp_path: Path):
    half = write(tmp_path, 16, "bad")
    assert exit_code_from(["lint", half]) == 0
    assert exit_code_from(["lint", half, "--compute-capability", "8.7"]) == 5


def test_a_dynamic_batch_is_a_warning_that_profiled_takes_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dynamic = write(tmp_path, 19, "bad")
    assert exit_code_from(["lint", dynamic]) == 0
    assert "its shape (?, 4, 32) is not fixed" in " ".join(capsys.readouterr().err.split())
    assert exit_code_from(["lint", dynamic, "--profiled", "x"]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trt-version", "9.3"], "Allowed: 8.6, 10.MINOR, 11.MINOR"),
        (["--target", "openvino"], "Allowed: trt (engine), trt-rtx"),
        (["--target", "trt-rtx", "--trt-version", "10.3"], "--trt-version is for --target trt"),
        (["--compute-capability", "sm87"], "two numbers are needed"),
    ],
)
def test_options_that_are_not_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
):
    code = exit_code_from(["lint", write(tmp_path, 1, "good"), *more])
    assert code == UsageError.exit_code
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_file_that_is_not_there(tmp_path: Path):
    assert exit_code_from(["lint", str(tmp_path / "none.onnx")]) == ModelError.exit_code
