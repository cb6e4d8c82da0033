"""Pruned variants beside the model, and quantised candidates, really built."""

import shlex
from pathlib import Path

import pytest

from vitdeploy.advising.schema import Advice
from vitdeploy.bundle import load_bundle
from vitdeploy.cli import exit_code_from
from vitdeploy.recipe import recipe_from_yaml

pytestmark = pytest.mark.slow
OPTIONS = [
    *["--target", "onnx", "--eval-samples", "16", "--calib-samples", "8"],
    *["--measure-seconds", "0.05", "-q"],
]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model with half of its MLPs' channels."""
    folder = tmp_path_factory.mktemp("pruned") / "half"
    arguments = ["--prune-mlp", "0.5", "--calib-samples", "8", "-o", str(folder), "-q"]
    assert exit_code_from(["prune", "vit-digits", *arguments]) == 0
    return folder


def advice_for(model: str, folder: Path, *options: str) -> Advice:
    arguments = ["advise", model, "--max-drop", "100", "--objective", "size", *OPTIONS, *options]
    assert exit_code_from([*arguments, "-o", str(folder / "a"), "--work", str(folder / "w")]) == 0
    return Advice.model_validate_json((folder / "a" / "advice.json").read_text(encoding="utf-8"))


def test_a_variant_is_compared_with_the_model_as_given(half: Path, tmp_path: Path):
    advice = advice_for("vit-digits", tmp_path, "--precision", "fp32", "--pruned", str(half))
    whole, small = advice.row("fp32 onnx"), advice.row("half fp32 onnx")
    assert whole.drop_points == 0
    assert small.drop_points is not None
    assert small.size_bytes < 0.8 * whole.size_bytes
    assert small.reference_bytes == whole.reference_bytes
    assert advice.recommended == "half fp32 onnx"
    assert any("has no gate" in note for note in advice.notes)
    recipe = recipe_from_yaml(tmp_path / "a" / "recommended.yaml")
    assert recipe.model.source == str(half)
    assert recipe.gates.max_drop_points is None


def test_another_models_folder_is_no_variant(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--max-drop", "1", "--pruned", str(half), "--random-weights", *OPTIONS]
    places = ["-o", str(tmp_path / "a"), "--work", str(tmp_path / "w")]
    assert exit_code_from(["advise", "timm:test_vit", *arguments, *places]) == 2
    assert "--pruned 'half' reads pictures by" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_quantised_artefact_is_made_again_to_the_byte(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ["--precision", "int8", "--precision", "w4a16", "--pruned", str(half)]
    advice = advice_for("vit-digits", tmp_path, *options)
    monkeypatch.chdir(tmp_path)
    assert exit_code_from(shlex.split(str(advice.command))[1:]) == 0
    (made,) = load_bundle(next(tmp_path.glob("vit-digits-half-*"))).artifacts()
    assert made.run_bytes == advice.row(str(advice.recommended)).size_bytes
