"""What a run adds for TensorRT: the package for the device, and the lint that must be clean."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vitdeploy
from tests.device.packages import device_report, make_package, run_build
from tests.model_folders import write_images, write_vit_folder
from vitdeploy import device_package
from vitdeploy.bundle import load_bundle, verify
from vitdeploy.cli import exit_code_from
from vitdeploy.errors import ExportError, UnsupportedError
from vitdeploy.lint import lint_file
from vitdeploy.recipe import recipe_from_yaml
from vitdeploy.report import read_report


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `images` and, exported with `auto` for TensorRT, `bundle`."""
    root = tmp_path_factory.mktemp("package")
    write_vit_folder(root / "model")
    write_images(root / "images")
    vitdeploy.export(str(root / "model"), output=root / "bundle", **sections(root))
    return root


def sections(root: Path, **changes) -> dict:
    return {
        "precision": "auto",
        "targets": ["trt"],
        "calibration": {"path": str(root / "images"), "samples": 8},
        "evaluation": {"path": str(root / "images")},
        "measure": {"seconds": 0.1},
        **changes,
    }


def test_the_package_is_whole_and_the_bundle_holds_its_hashes(place: Path):
    folder = place / "bundle/trt"
    names = {path.name for path in folder.iterdir()}
    assert {"build.py", "build.sh", "README.md", "package.json", "lint.json", "golden"} <= names
    contents = json.loads((folder / "package.json").read_text())
    (part,) = contents["parts"]
    graphs = {(g["precision"], g["typing"], g["file"]) for g in part["graphs"]}
    assert graphs == {
        ("int8", "strong", "model.strong.onnx"),
        ("int8", "weak", "model.weak.onnx"),
        ("fp16", "strong", "model.fp16.strong.onnx"),
        ("fp16", "weak", "model.fp16.weak.onnx"),
    }
    verify(load_bundle(place / "bundle"))


def test_no_rule_of_the_lint_is_broken(place: Path):
    verdicts = json.loads((place / "bundle/trt/lint.json").read_text())
    assert len(verdicts) == 4
    assert [verdict["errors"] for verdict in verdicts] == [0, 0, 0, 0]
    assert all(len(verdict["rules"]) == 31 for verdict in verdicts)


def test_the_device_is_asked_for_what_the_graph_itself_kept(place: Path):
    """FP16 keeps more than INT8 on ONNX Runtime, so more is asked of its engine."""
    (part,) = json.loads((place / "bundle/trt/package.json").read_text())["parts"]
    asked = {g["precision"]: g["min_sqnr_db"]["logits"] for g in part["graphs"]}
    assert 0 < asked["int8"] < asked["fp16"] <= 40


def test_no_latency_is_claimed_for_an_engine_that_was_not_built(place: Path):
    report = read_report(place / "bundle/report.json")
    assert {row.target for row in report.latency} == {"reference"}
    assert report.speedup == {"trt": None}
    assert "no TensorRT on this machine" in report.speedup_reason["trt"]
    assert any("the device builds both" in note for note in report.notes)


def test_the_size_is_of_the_graph_that_a_device_loads(place: Path):
    """INT8 and FP16, strong and weak: four graphs, of which a device builds one."""
    report = read_report(place / "bundle/report.json")
    folder = place / "bundle/trt"
    assert report.size_bytes["trt"] == (folder / "model.strong.onnx").stat().st_size
    (artifact,) = report.artifacts
    assert artifact.bytes > sum(path.stat().st_size for path in folder.glob("*.onnx")) - 1
    (note,) = [note for note in report.notes if note.startswith("trt: a device loads")]
    assert f"loads {report.size_bytes['trt'] / 1e6:.2f} MB" in note
    assert f"take {artifact.bytes / 1e6:.2f} MB together" in note


def test_the_report_says_what_the_builder_fused(place: Path):
    pytest.importorskip("tensorrt_rtx", reason="the builder of TensorRT for RTX is not installed")
    notes = read_report(place / "bundle/report.json").notes
    (line,) = [note for note in notes if note.startswith("trt, model: TensorRT for RTX")]
    fusion = json.loads((place / "bundle/trt/model.fusion.json").read_text())
    assert fusion["int8_products"] > 0
    assert f"runs {fusion['int8_products']} of {fusion['products']} products in INT8" in line
    assert f"fuses {fusion['fused_attention']} of {fusion['attention']} attention layers" in line


def test_its_build_script_says_what_a_machine_without_tensorrt_lacks(place: Path):
    script = place / "bundle/trt/build.py"
    without = "import sys, runpy; sys.modules['tensorrt'] = None; runpy.run_path(sys.argv.pop(), "
    result = subprocess.run(
        [sys.executable, "-c", f"{without}run_name='__main__')", str(script)],
        capture_output=True,
        text=True,
        env={"PATH": ""},
        check=False,
    )
    assert result.returncode == 6, result.stderr
    assert "tensorrt" in result.stderr
    assert exit_code_from(["build", str(place / "bundle"), "--no-timing"]) == 6


def test_what_a_build_found_is_shown_with_the_report(place: Path, tmp_path: Path):
    """The build is of the stand-in, on a package of its own: it computes no real graph."""
    made = make_package(tmp_path / "trt")
    assert run_build(made).returncode == 0
    bundle = shutil.copytree(place / "bundle", tmp_path / "bundle")
    shutil.copy(made / "device_report.json", bundle / "trt")
    page = tmp_path / "report.html"
    assert exit_code_from(["report", "show", str(bundle), "--html", str(page)]) == 0
    assert "Engines of TensorRT 10.3.0" in page.read_text()
    verify(load_bundle(bundle))


def test_the_report_for_programs_holds_it_too(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = make_package(tmp_path / "trt")
    assert run_build(made).returncode == 0
    bundle = shutil.copytree(place / "bundle", tmp_path / "bundle")
    shutil.copy(made / "device_report.json", bundle / "trt")
    capsys.readouterr()
    assert exit_code_from(["report", "show", str(bundle), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["device"] == device_report(made)


def test_a_fixed_batch_larger_than_the_golden_images_is_filled(place: Path, tmp_path: Path):
    changes = sections(place, precision="fp16", export={"batch": 6, "trt_version": "11.4"})
    vitdeploy.export(str(place / "model"), output=tmp_path / "six", **changes)
    contents = json.loads((tmp_path / "six/trt/package.json").read_text())
    (part,) = contents["parts"]
    assert part["inputs"][0]["shape"][0] == 6
    assert len(part["golden"]) == 1
    assert [g["typing"] for g in part["graphs"]] == ["strong"]  # 11.x has no weak typing
    assert recipe_from_yaml(tmp_path / "six/recipe.yaml").export.trt_version == "11.4"


def test_a_graph_that_breaks_a_rule_is_not_shipped(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The lint is asked about TensorRT 8.6, which takes no opset 20."""
    monkeypatch.setattr(
        device_package, "lint_file", lambda path, _version, known: lint_file(path, "8.6", known)
    )
    with pytest.raises(ExportError, match=r"breaks \d+ rule\(s\) of TensorRT 8\.6"):
        vitdeploy.export(
            str(place / "model"), output=tmp_path / "bad", **sections(place, precision="fp16")
        )
    assert not (tmp_path / "bad").exists()


def test_an_engine_built_here_is_not_chosen_without_its_card(place: Path, tmp_path: Path):
    with pytest.raises(UnsupportedError, match="'trt-rtx' cannot be timed here"):
        vitdeploy.export(
            str(place / "model"), output=tmp_path / "x", **sections(place, targets=["trt-rtx"])
        )
