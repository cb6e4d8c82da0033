"""`vitdeploy build`: a bundle with a TensorRT package, on a device that the stand-ins play."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitdeploy
from tests.device.packages import STANDIN, package_part
from vitdeploy.bundle import Artifact, BundleWriter, TensorInfo, load_bundle, verify
from vitdeploy.cli import exit_code_from
from vitdeploy.device import BuildOptions, PackageOptions, build_bundle, write_package
from vitdeploy.device.building import error_from_failure, read_device_report
from vitdeploy.device.onboard.failure import Failure
from vitdeploy.errors import (
    DataError,
    ExportError,
    GateError,
    UnsupportedError,
    UsageError,
)
from vitdeploy.manifest import Manifest, ModelEntry

MAIN = Path(vitdeploy.__file__).parent / "__main__.py"
HEAD = Manifest(
    model=ModelEntry(
        name="vit-test", family="vit", source="test", task="classification", weights="random"
    ),
    preprocess={"size": [32, 32]},
)


def make_bundle(path: Path, target: str = "trt") -> Path:
    with BundleWriter(path) as writer:
        file = writer.add_file(f"{target}/model.int8.strong.onnx")
        if target == "trt":
            part = package_part(file.parent, [("int8", "strong")])
            write_package(file.parent, (part,), PackageOptions("vit-test"))
        else:
            file.write_bytes(b"onnx")
        writer.add_artifact(
            Artifact(
                part="model",
                target=target,
                precision="int8",
                path=file,
                sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                bytes=file.stat().st_size,
                parent=None,
                inputs=(TensorInfo("x", ("batch", 12)),),
                outputs=(TensorInfo("logits", ("batch", 5)),),
                settings={},
                files=(file,),
            )
        )
        writer.describe(HEAD)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def build_on_device(bundle: Path, *options: str, faults: str = "") -> subprocess.CompletedProcess:
    """The command line in a process that has the stand-ins."""
    repository = MAIN.parent.parent
    return subprocess.run(
        [sys.executable, str(STANDIN / "run.py"), str(MAIN), "build", str(bundle), *options],
        env={
            **os.environ,
            "PYTHONPATH": f"{STANDIN}{os.pathsep}{repository}",
            "STANDIN_TENSORRT": "10.3.0",
            "STANDIN_LOG": str(bundle.parent / "standin.log"),
            "STANDIN_FAULTS": faults,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_builds_and_the_bundle_still_verifies(bundle: Path):
    result = build_on_device(bundle, "--json", "--shapes", "batch=4")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == read_device_report(bundle)
    assert report["options"]["sizes"] == {"batch": 4}
    assert (bundle / "trt/model.engine").is_file()
    verify(load_bundle(bundle))


def test_it_shows_tables_on_stderr(bundle: Path):
    result = build_on_device(bundle)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "kept" in result.stderr
    assert "1 of 1" in result.stderr


def test_a_mismatch_is_ten_and_is_reported(bundle: Path):
    result = build_on_device(bundle, faults="nan:model.int8.strong.onnx")
    assert result.returncode == 10
    assert "does not do what the model does" in result.stderr
    report = read_device_report(bundle)
    assert report is not None
    assert report["passed"] is False
    assert not (bundle / "trt/model.engine").exists()


def test_without_tensorrt_it_is_six_and_says_what_to_install(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # also where a real one is installed
    assert exit_code_from(["build", str(bundle)]) == 6
    words = " ".join(capsys.readouterr().err.split())
    assert "nvidia-jetpack" in words
    assert "pip install tensorrt" in words
    assert read_device_report(bundle) is None


def test_trtexec_alone_is_six_or_accepted(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv("STANDIN_TENSORRT", "10.3.0")
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))
    arguments = ["build", str(bundle), "--no-timing", "--trtexec", str(STANDIN / "trtexec")]
    assert exit_code_from(arguments) == 6
    assert exit_code_from([*arguments, "--no-check"]) == 0


def test_a_bundle_for_something_else_is_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = make_bundle(tmp_path / "onnx", target="onnx")
    assert exit_code_from(["build", str(other)]) == 2
    assert "it was made for onnx" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="--target trt"):
        build_bundle(other, BuildOptions())


def test_a_changed_bundle_is_seven(bundle: Path):
    (bundle / "trt/build.py").write_text("")
    assert exit_code_from(["build", str(bundle)]) == 7


@pytest.mark.parametrize("arguments", [["--target", "onnx"], ["--shapes", "batch"]])
def test_wrong_options_are_two(bundle: Path, arguments: list[str]):
    assert exit_code_from(["build", str(bundle), *arguments]) == 2


@pytest.mark.parametrize(
    ("code", "error"),
    [(2, UsageError), (5, ExportError), (6, UnsupportedError), (7, DataError), (10, GateError)],
)
def test_failures_become_the_errors_of_their_exit_codes(code: int, error: type):
    made = error_from_failure(Failure("words", code))
    assert isinstance(made, error)
    assert (made.exit_code, str(made)) == (code, "words")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", DataError),
        ('{"format": "other"}', DataError),
        ('{"format": "vitdeploy-device-report", "schema_version": 2}', UnsupportedError),
    ],
)
def test_a_device_report_that_is_none_is_refused(bundle: Path, text: str, error: type):
    (bundle / "trt/device_report.json").write_text(text)
    with pytest.raises(error):
        read_device_report(bundle)
