"""`vitdeploy prune`: from a name to a folder that exports, and every way it can go wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.model_folders import write_images, write_vit_folder
from vitdeploy.cli import exit_code_from
from vitdeploy.errors import CompressionError, DataError, ModelError, UsageError
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.pruned import load_pruned
from vitdeploy.progress import SilentProgress
from vitdeploy.pruning import prune, prune_loaded, pruning_images
from vitdeploy.recipe import ModelSection, PruneSection


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pruning")
    write_vit_folder(root / "model")  # two blocks of three heads and 192 channels
    write_images(root / "images")
    return root


def command(place: Path, output: Path, *more: str) -> int:
    images = ("--calib", str(place / "images"), "--calib-samples", "9")
    return exit_code_from(["prune", str(place / "model"), *images, "--output", str(output), *more])


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_pruned_folder_is_a_model_that_exports(place, tmp_path, capsys):
    folder = tmp_path / "pruned"
    assert command(place, folder, "--prune-heads", "0.34", "--prune-mlp", "0.25", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == "images"
    assert report["prune"]["heads"] == 0.34
    assert report["after"]["parameters"] < report["before"]["parameters"]
    heads = [site.num_heads for site in load(LoadOptions(str(folder))).attention]
    assert sum(heads) == 4
    assert load_pruned(folder).blocks[0].attn.num_heads == heads[0]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    bundle = tmp_path / "bundle"
    arguments = ["--eval", str(place / "images"), "--measure-seconds", "0", "--quiet"]
    assert exit_code_from(["export", str(folder), "-o", str(bundle), *arguments]) == 0
    rows = json.loads((bundle / "report.json").read_text())["fidelity"]
    agreement = next(row["value"] for row in rows if row["metric"] == "agreement")
    assert agreement == 100.0


def test_a_limit_is_reached(place, tmp_path, capsys):
    limit = ("--to-million-parameters", "0.04", "--criterion", "magnitude", "--json")
    assert command(place, tmp_path / "pruned", *limit) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["after"]["parameters"] <= 40_000
    assert 0 < report["prune"]["found_share"] < 1
    assert report["images"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), UsageError, "nothing to prune"),
        (("--prune-heads", "1.0"), UsageError, "less than 1"),
        (("--prune-heads", "-0.1"), UsageError, "greater than or equal to 0"),
        (("--prune-mlp", "0.3", "--criterion", "entropy"), UsageError, "'taylor', 'gate'"),
        (("--prune-mlp", "0.3", "--to-gmacs", "1"), UsageError, "either a size to reach"),
        (("--to-gmacs", "1", "--to-million-parameters", "1"), UsageError, "not several"),
        (("--prune-heads", "0.9"), CompressionError, "only 4 can go"),
        (("--to-gmacs", "1e-9"), CompressionError, "cannot be reached"),
    ],
)
def test_what_cannot_be_asked_for(place, tmp_path, capsys, arguments, code, message):
    assert command(place, tmp_path / "pruned", *arguments) == code.exit_code
    assert message in errors(capsys)
    assert not list(tmp_path.iterdir())


def test_images_of_one_class_are_refused(place, tmp_path, capsys):
    one = tmp_path / "one"
    one.mkdir()
    shutil.copytree(place / "images" / "red", one / "red")
    arguments = ("--calib", str(one), "--prune-heads", "0.34")
    assert command(place, tmp_path / "pruned", *arguments) == DataError.exit_code
    assert "are of one class" in errors(capsys)
    # the same images without a class are fine
    arguments = ("--calib", str(one / "red"), "--prune-heads", "0.34")
    assert command(place, tmp_path / "pruned", *arguments) == 0


def test_labels_that_are_not_the_models_are_refused(place, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(place / "images", other)
    (other / "blue").rename(other / "violet")
    arguments = ("--calib", str(other), "--prune-heads", "0.34")
    assert command(place, tmp_path / "pruned", *arguments) == DataError.exit_code
    assert "violet" in errors(capsys)


def test_a_model_of_ones_own_needs_images_where_the_criterion_does(place, tmp_path, capsys):
    base = ["prune", str(place / "model"), "--prune-heads", "0.34", "-o", str(tmp_path / "pruned")]
    assert exit_code_from(base) == UsageError.exit_code
    assert "--criterion magnitude" in errors(capsys)
    assert exit_code_from([*base, "--criterion", "magnitude"]) == 0


def test_outputs_are_replaced_only_when_they_are_pruned_models(place, tmp_path, capsys):
    folder = tmp_path / "pruned"
    arguments = ("--prune-mlp", "0.3", "--criterion", "random")
    assert command(place, folder, *arguments) == 0
    weights = (folder / "model.safetensors").read_bytes()
    assert command(place, folder, *arguments) == UsageError.exit_code
    assert "exists" in errors(capsys)
    assert command(place, folder, *arguments, "--force", "--seed", "5") == 0
    assert (folder / "model.safetensors").read_bytes() != weights
    whole = tmp_path / "whole"
    shutil.copytree(place / "model", whole)
    assert command(place, whole, *arguments, "--force") == UsageError.exit_code
    assert "not a vitdeploy bundle" in errors(capsys)


def test_other_errors_keep_their_codes(place, tmp_path, capsys):
    for model, code in (("no-such-model", ModelError), ("model.onnx", UsageError)):
        arguments = ["prune", model, "--prune-mlp", "0.3", "-o", str(tmp_path / "pruned")]
        assert exit_code_from(arguments) == code.exit_code
    assert "pruning needs the torch model" in errors(capsys)


def test_a_failed_write_leaves_nothing(place, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr("vitdeploy.pruning.save_model_folder", fail)
    section = PruneSection(mlp=0.3, criterion="random")
    with pytest.raises(OSError, match="no"):
        prune(ModelSection(source=str(place / "model")), section, tmp_path / "pruned")
    assert not list(tmp_path.iterdir())


def test_an_alias_is_pruned_on_its_packaged_images(tmp_path):
    section = PruneSection(heads=0.3, mlp=0.3, samples=20)
    report = prune(ModelSection(source="vit-digits"), section, tmp_path / "pruned")
    assert report.images == "digits/calib"
    assert report.to_dict()["after"]["parameters"] < report.to_dict()["before"]["parameters"]
    assert load(LoadOptions(str(tmp_path / "pruned"))).spec.label_names


def test_images_come_from_the_section_then_from_the_recipe(place):
    loaded = load(LoadOptions(str(place / "model")))
    images = str(place / "images")
    own = pruning_images(PruneSection(heads=0.3, path=images, samples=6), loaded, 0, "synthetic")
    assert (own.images.name, len(own)) == ("images", 6)
    given = pruning_images(PruneSection(heads=0.3, samples=6), loaded, 0, "synthetic")
    assert (given.images.name, len(given)) == ("synthetic", 6)
    none = PruneSection(heads=0.3, criterion="magnitude")
    assert pruning_images(none, loaded, 0, images) is None


def test_labels_stay_with_their_images(place, monkeypatch):
    loaded = load(LoadOptions(str(place / "model")))
    section = PruneSection(heads=0.34, path=str(place / "images"), samples=9)
    given = []
    monkeypatch.setattr("vitdeploy.pruning.prune_model", lambda *arguments: given.append(arguments))
    images = pruning_images(section, loaded, 3)
    prune_loaded(loaded, section, images, 3, SilentProgress())
    _, _, inputs = given[0]
    ((pixels, labels),) = inputs.batches()
    # label 0 is the folder of red pictures, 1 of green, 2 of blue ones
    assert np.array_equal(pixels.mean((2, 3)).argmax(1), labels)
    assert inputs.seed == 3
