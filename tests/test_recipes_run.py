"""Every recipe under `recipes/` runs to a bundle, on random weights and few, small images.

`vit-digits` is small and ships with its weights, so its recipe runs as it is.
"""

from pathlib import Path
from typing import Any

import pytest
import timm

import vitdeploy
from vitdeploy.bundle import load_bundle
from vitdeploy.recipe import Recipe, recipe_from_dict, recipe_from_yaml

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
AS_IT_IS = "vit-digits-int8"
TRAINED = ("vit-digits-smaller-int8", "deit-tiny-distillation")
"""These train; see `tests/test_distillation_recipes.py`."""
# Sizes that keep each architecture's shape: several patches, a stage of Swin before and one after
# merging, with plain and shifted windows, position embeddings that have to be resampled.
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "vit-tiny-int8": (32, {"depth": 2}),
    "deit-tiny-distilled-int8": (32, {"depth": 2}),
    "swin-tiny-int8": (64, {"depths": (2, 2), "num_heads": (3, 6)}),
    "dinov2-small-int8": (28, {"depth": 2}),
    "dinov3-small-int8": (32, {"depth": 2}),
    "fastvit-t8-int8": (64, {}),
}


def shrunk(recipe: Recipe, image_size: int) -> Recipe:
    """The recipe without the hub, and small; random weights promise no gate's limit."""
    data: dict[str, Any] = recipe.model_dump(mode="json")
    data["model"] |= {"random_weights": True, "image_size": image_size}
    data["calibration"]["samples"] = 2
    data["evaluation"]["samples"] = 3
    data["measure"]["seconds"] = 0
    data["gates"] = {}
    return recipe_from_dict(data)


def test_every_recipe_is_run_here():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*SMALL, AS_IT_IS, *TRAINED}


@pytest.mark.parametrize("name", SMALL)
def test_recipe_runs_on_random_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image_size, arguments = SMALL[name]
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *names, **options: create(*names, **options, **arguments)
    )
    asked = recipe_from_yaml(RECIPES / f"{name}.yaml")
    report = vitdeploy.run(shrunk(asked, image_size), output=tmp_path / "out")
    assert report.stamps == ("random-weights", "calibration: generic", "evaluation: generic")
    artifacts = load_bundle(tmp_path / "out").artifacts()
    assert tuple(artifact.target for artifact in artifacts) == asked.targets
    assert {artifact.precision for artifact in artifacts} == {asked.precision}
    assert vitdeploy.check(tmp_path / "out").passed


def test_the_digits_recipe_keeps_its_gates_with_the_weights_that_ship(tmp_path: Path):
    output = tmp_path / "out"
    report = vitdeploy.run(recipe_from_yaml(RECIPES / f"{AS_IT_IS}.yaml"), output=output)
    assert report.stamps == ()
    assert report.passed
    assert {gate.name for gate in report.gates} == {
        "max_drop_points:onnx:top1",
        "max_drop_points:openvino:top1",
    }
    rows = [row for row in report.fidelity if row.metric == "top1"]
    for row in rows:
        assert row.n == 500
        assert row.reference is not None
        # what the model card promises
        assert row.reference >= 97.5
    assert vitdeploy.check(output).passed
