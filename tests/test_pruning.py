"""`vitdeploy prune`: from a name to a folder that exports, and every way it can go wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.cli import exit_code_from
from vitdeploy.compress.prune import budget
from vitdeploy.errors import (
    CompressionError,
    DataError,
    ModelError,
    UnsupportedError,
    UsageError,
)
from vitdeploy.measure import Subject, Timing
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.pruned import load_pruned
from vitdeploy.progress import SilentProgress
from vitdeploy.pruning import latency_on, prune_loaded, pruning_images
from vitdeploy.recipe import PruneSection, recipe_from_yaml
from vitdeploy.targets import onnx


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
    section = {"mlp": 0.3, "criterion": "random"}
    with pytest.raises(OSError, match="no"):
        vitdeploy.prune(str(place / "model"), tmp_path / "pruned", prune=section)
    assert not list(tmp_path.iterdir())


def test_an_alias_is_pruned_on_its_packaged_images(tmp_path):
    section = {"heads": 0.3, "mlp": 0.3, "samples": 20}
    report = vitdeploy.prune("vit-digits", tmp_path / "pruned", prune=section)
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


class SizeClock:
    """Stands for timing: a candidate that was built and runs takes 1 ms for each 10 kB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        build = onnx.build

        def counted(request):
            artifact = build(request)
            assert request.precision == "fp32"
            self.sizes.append(artifact.bytes)
            return artifact

        monkeypatch.setattr(onnx, "build", counted)
        monkeypatch.setattr(budget, "_MEASURED_STEPS", 3)  # each candidate is exported
        monkeypatch.setattr("vitdeploy.pruning.measure_latency", self)

    def __call__(self, subjects: list[Subject], seconds: float):
        assert seconds > 0
        (subject,) = subjects
        assert subject.runner(subject.feeds)["logits"].shape == (subject.batch, 3)
        return {subject.name: Timing(np.full(3, self.sizes[-1] / 1e4), subject.batch)}


def test_a_latency_is_reached_by_building_and_timing_candidates(
    place, tmp_path, monkeypatch, capsys
):
    clock = SizeClock(monkeypatch)
    limit = ("--to-latency-ms", "25", "--criterion", "magnitude", "--width-multiple", "1")
    assert command(place, tmp_path / "pruned", *limit, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    whole, kept = clock.sizes[0], clock.sizes[-1]
    assert kept <= 250_000 < whole
    assert kept > 150_000  # no more went than an eighth of the heads and channels too many
    assert 0 < report["prune"]["found_share"] < 1
    (note,) = [note for note in report["notes"] if " ms " in note]
    assert note.startswith(f"{whole / 1e4:.4g} to {kept / 1e4:.4g} ms (25 asked for)")
    assert load_pruned(tmp_path / "pruned")


def test_a_latency_that_cannot_be_measured_or_reached(place, tmp_path, monkeypatch, capsys):
    arguments = ("--to-latency-ms", "5", "--criterion", "magnitude", "--target")
    if load_target_reason("trt") is not None:
        assert command(place, tmp_path / "pruned", *arguments, "trt") == UnsupportedError.exit_code
        assert "'trt' cannot be timed here" in errors(capsys)
    assert command(place, tmp_path / "pruned", *arguments, "npu") == UsageError.exit_code
    assert "unknown target 'npu'" in errors(capsys)
    SizeClock(monkeypatch)
    assert command(place, tmp_path / "pruned", *arguments, "onnx") == CompressionError.exit_code
    assert "5 ms cannot be reached" in errors(capsys)
    assert command(place, tmp_path / "pruned", "--to-latency-ms", "0") == UsageError.exit_code
    assert not list(tmp_path.iterdir())


def load_target_reason(name: str) -> str | None:
    from vitdeploy.targets import load_target

    return load_target(name).untimed_reason()


def test_a_model_is_timed_on_its_target(place):
    loaded = load(LoadOptions(str(place / "model")))
    for name in ("onnx", "openvino"):
        assert 0 < latency_on(name, batch=3)(loaded) < 10_000
    with pytest.raises(UnsupportedError, match="'npu' is not available"):
        latency_on("npu")


def test_a_recipe_reaches_a_latency_and_its_rerun_measures_nothing(place, tmp_path, monkeypatch):
    clock = SizeClock(monkeypatch)
    section = {"to_latency_ms": 25, "criterion": "magnitude", "width_multiple": 1}
    sections = {"evaluation": {"path": str(place / "images")}, "measure": {"seconds": 0}}
    bundle = tmp_path / "bundle"
    report = vitdeploy.export(str(place / "model"), output=bundle, prune=section, **sections)
    assert any("25 asked for" in note for note in report.notes)
    assert len(clock.sizes) > 3  # the whole, the least, and what lies between
    recipe = recipe_from_yaml(bundle / "recipe.yaml")
    assert recipe.prune.found_share > 0
    clock.sizes.clear()
    again = vitdeploy.run(recipe, output=tmp_path / "again")
    assert len(clock.sizes) == 1  # the artefact itself
    assert again.size_bytes == report.size_bytes


def test_the_functions_are_public(place, tmp_path):
    section = {"mlp": 0.3, "criterion": "magnitude"}
    done = vitdeploy.prune(str(place / "model"), tmp_path / "pruned", prune=section, seed=2)
    model = vitdeploy.load_pruned(tmp_path / "pruned")
    assert sum(p.numel() for p in model.parameters()) == done.to_dict()["after"]["parameters"]
    with pytest.raises(UsageError, match="nothing to prune"):
        vitdeploy.prune(str(place / "model"), tmp_path / "other")
    with pytest.raises(UsageError, match="pruning"):
        vitdeploy.prune(str(place / "model"), tmp_path / "other", pruning=section)
    with pytest.raises(ModelError, match="holds no pruned model"):
        vitdeploy.load_pruned(place / "model")
