"""Every command and every exit code, through the same entry as the shell's."""

import json
from pathlib import Path

import pytest

from tests.model_folders import write_images, write_vit_folder
from vitdeploy.cli import exit_code_from
from vitdeploy.errors import (
    CompressionError,
    DataError,
    ExportError,
    GateError,
    ModelError,
    UnsupportedError,
    UsageError,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    write_vit_folder(root / "model")
    write_images(root / "images")
    return root


def export_arguments(place: Path, output: Path, *more: str) -> list[str]:
    return [
        "export", str(place / "model"), "--int8", "--calib", str(place / "images"),
        "--calib-samples", "9", "--eval", str(place / "images"), "--measure-seconds", "0.1",
        "--output", str(output), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    assert exit_code_from(export_arguments(place, place / "bundle", "--quiet")) == 0
    return place / "bundle"


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_json_alone_is_on_stdout(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = export_arguments(place, tmp_path / "out", "--json", "--precision", "fp32")
    arguments.remove("--int8")
    assert exit_code_from(arguments) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert "export" in captured.err


def test_quiet_prints_nothing(bundle: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert exit_code_from(["plan", str(bundle / "recipe.yaml")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("schema_version: 1")
    assert captured.err == ""


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "BUNDLE"],
        ["profile", "BUNDLE", "--seconds", "0.1"],
        ["predict", "BUNDLE", "IMAGE"],
        ["inspect", "MODEL"],
        ["models"],
        ["doctor"],
        ["report", "show", "BUNDLE"],
        ["report", "diff", "BUNDLE", "BUNDLE"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_answer(
    arguments: list[str],
    as_json: bool,
    bundle: Path,
    place: Path,
    capsys: pytest.CaptureFixture[str],
):
    names = {
        "BUNDLE": str(bundle),
        "IMAGE": str(place / "images/red/00.png"),
        "MODEL": str(place / "model"),
    }
    given = [names.get(argument, argument) for argument in arguments]
    capsys.readouterr()
    assert exit_code_from(given + ["--json"] * as_json) == 0
    captured = capsys.readouterr()
    if as_json:
        json.loads(captured.out)
        assert captured.err == ""
    else:
        assert captured.out == ""
        assert captured.err.strip()


def test_run_repeats_an_export_and_writes_junit(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["run", str(bundle / "recipe.yaml"), "-o", str(tmp_path / "again")]
    assert exit_code_from([*arguments, "--junit", str(tmp_path / "out.xml")]) == 0
    assert "<testsuite" in (tmp_path / "out.xml").read_text()
    again = (tmp_path / "again/onnx/model.onnx").read_bytes()
    assert again == (bundle / "onnx/model.onnx").read_bytes()
    assert "speed-up" in errors(capsys)


def test_version(capsys: pytest.CaptureFixture[str]):
    from vitdeploy import __version__

    assert exit_code_from(["--version"]) == 0
    assert capsys.readouterr().out == f"vitdeploy {__version__}\n"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--int9"], "--int8"),
        (["--fp16"], "more than one precision"),
        (["--batch", "none"], "export.batch"),
        # isdigit() is true of it, and int() refuses it
        (["--batch", "²"], "export.batch"),
        (["--outputs", "logit"], "model.outputs"),
        (["--opset", "3"], "opset"),
        (["--target", "onyx"], "Did you mean 'onnx'?"),
        (["--image-size", "-1"], "image_size"),
        (["--random-weights", "--checkpoint", "w.pth"], "not both"),
    ],
)
def test_2_usage(
    more: list[str], text: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert exit_code_from(export_arguments(place, tmp_path / "out", *more)) == UsageError.exit_code
    assert text in errors(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["profile", "BUNDLE", "--seconds", "nan"], "'--seconds': nan is not a number"),
        (["profile", "BUNDLE", "--seconds", "-1"], "'--seconds': -1 is not a number"),
        (["profile", "BUNDLE", "--threads", "0"], "greater than or equal to 1"),
        (["profile", "BUNDLE", "--batch", "0"], "greater than or equal to 1"),
        (["profile"], "Missing argument"),
        (["check", "BUNDLE", "--max-drop", "nan"], "'--max-drop': nan is not a number"),
        (["check", "none"], "does not exist"),
        (["predict", "none", "image.png"], "does not exist"),
        (["predict", "BUNDLE", "image.png", "--target", "openvino"], "it has onnx"),
        (["report", "show", "none"], "no report"),
    ],
)
def test_2_other_commands(
    arguments: list[str], text: str, bundle: Path, capsys: pytest.CaptureFixture[str]
):
    given = [str(bundle) if argument == "BUNDLE" else argument for argument in arguments]
    assert exit_code_from(given) == UsageError.exit_code
    assert text in errors(capsys)


@pytest.mark.parametrize("junit", [".", "none/out.xml"])
def test_2_junit_that_cannot_be_written_is_found_before_the_work(
    junit: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["run", str(bundle / "recipe.yaml"), "-o", str(tmp_path / "out")]
    assert exit_code_from([*given, "--junit", str(tmp_path / junit)]) == UsageError.exit_code
    assert "Give the path of a file" in errors(capsys)
    assert not list(tmp_path.iterdir())


def test_2_existing_output(bundle: Path, place: Path, capsys: pytest.CaptureFixture[str]):
    assert exit_code_from(export_arguments(place, bundle)) == UsageError.exit_code
    assert "--force" in errors(capsys)


def test_2_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "r.yaml").write_text("model: {source: vit-tiny}\nprecison: int8\n")
    assert exit_code_from(["run", str(tmp_path / "r.yaml")]) == UsageError.exit_code
    assert "Did you mean 'precision'?" in errors(capsys)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["vit-tinny"], "Did you mean 'vit-tiny'?"),
        (["vit-tiny", "--checkpoint", "none.pth"], "none.pth"),
        (["timm:vit_tiny_patch16_22"], "vit_tiny_patch16_224"),
        (["vit-tiny", "--random-weights", "--image-size", "225"], "224"),
    ],
)
def test_3_model(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["export", *arguments, "-o", str(tmp_path / "out")]
    assert exit_code_from(given) == ModelError.exit_code
    assert text in errors(capsys)
    assert not list(tmp_path.iterdir())


def test_3_offline_names_the_ways_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["export", "vit-tiny", "-o", str(tmp_path / "out")]
    assert exit_code_from(given) == ModelError.exit_code
    message = errors(capsys)
    assert "--checkpoint" in message
    assert "--random-weights" in message


def test_4_compression(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = (bundle / "recipe.yaml").read_text()
    assert "keep_float: []" in text
    (tmp_path / "r.yaml").write_text(text.replace("keep_float: []", "keep_float: [no-such-node]"))
    given = ["run", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "out")]
    assert exit_code_from(given) == CompressionError.exit_code
    assert "no-such-node" in errors(capsys)
    assert not (tmp_path / "out").exists()


def test_5_export(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    import torch

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("aten::something is not supported")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    given = export_arguments(place, tmp_path / "out")
    assert exit_code_from(given) == ExportError.exit_code
    assert "aten::something" in errors(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--precision", "w4a8", "--target", "trt"], "multiplies in FP16"),
        (["--int4", "--target", "trt", "--trt-version", "10.3"], "TensorRT 10.3 reads no INT4"),
        (["--int4", "--target", "trt", "--trt-version", "8.6"], "TensorRT 10.15 is the first"),
    ],
)
def test_6_what_the_target_lacks_of_int4(
    more: list[str], said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = [a for a in export_arguments(place, tmp_path / "out", *more) if a != "--int8"]
    assert exit_code_from(given) == UnsupportedError.exit_code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--int8", "--int4"], "more than one precision"),
        (["--int8", "--int4-mixed"], "--int4-mixed chooses between INT4 and INT8"),
        (["--int4", "--int4-max-size", "20"], "goals of --int4-mixed"),
        (["--int4", "--opset", "20"], "INT4 weights came with opset 21"),
    ],
)
def test_2_options_of_int4_that_do_not_go_together(
    more: list[str], said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["export", str(place / "model"), *more, "-o", str(tmp_path / "out")]
    assert exit_code_from(given) == UsageError.exit_code
    assert said in errors(capsys)


def test_6_precision_the_runtime_lacks(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["export", str(place / "model"), "--bf16", "-o", str(tmp_path / "out")]
    assert exit_code_from(given) == UnsupportedError.exit_code
    assert "openvino" in errors(capsys)


def test_7_data(place: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    given = export_arguments(place, tmp_path / "out")
    given[given.index("--calib") + 1] = str(tmp_path / "empty")
    assert exit_code_from(given) == DataError.exit_code
    assert "no images" in errors(capsys)
    golden = bundle / "golden/model.npz"
    before = golden.read_bytes()
    golden.write_bytes(before + b" ")
    assert exit_code_from(["check", str(bundle)]) == DataError.exit_code
    assert "expected sha256" in errors(capsys)
    golden.write_bytes(before)


def test_7_disk_full(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    import errno

    import onnx_ir

    def fill(_model: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx_ir, "save", fill)
    given = export_arguments(place, tmp_path / "out")
    assert exit_code_from(given) == DataError.exit_code
    assert "disk full" in errors(capsys)
    assert not list(tmp_path.iterdir())


def test_10_gate(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = export_arguments(place, tmp_path / "out", "--max-latency-ms", "0.0001")
    assert exit_code_from(given) == GateError.exit_code
    assert "max_latency_ms:onnx" in errors(capsys)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [gate["passed"] for gate in report["gates"]] == [False]


def test_130_interrupted(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitdeploy.comparing.collect_outputs", interrupt)
    assert exit_code_from(export_arguments(place, tmp_path / "out")) == 130
    assert "interrupted" in errors(capsys)
    assert not list(tmp_path.iterdir())


def test_1_bug_shows_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise AssertionError("a bug of ours")

    monkeypatch.setattr("vitdeploy.models.aliases", fail)
    assert exit_code_from(["models"]) == 1
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert "a bug of ours" in message
