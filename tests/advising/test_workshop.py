from pathlib import Path

import pytest
import torch

from tests.small_models import loaded_from_part, part_from_module
from vitdeploy.advising import workshop as workshop_module
from vitdeploy.advising.candidates import ORIGINAL, Candidate
from vitdeploy.advising.trial import recipe_for
from vitdeploy.advising.workshop import Workshop, recipe_of_variant, with_named_images
from vitdeploy.bundle import BundleWriter
from vitdeploy.data import Preprocess
from vitdeploy.errors import UsageError
from vitdeploy.models.spec import LoadedModel, LoadOptions
from vitdeploy.progress import SilentProgress
from vitdeploy.recipe import Recipe, recipe_from_dict


def linear(hidden: int) -> LoadedModel:
    torch.manual_seed(hidden)
    layers = (torch.nn.Linear(3 * 32 * 32, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, 5))
    return loaded_from_part(part_from_module(torch.nn.Sequential(torch.nn.Flatten(), *layers)))


def recipe(**changes: object) -> Recipe:
    return recipe_from_dict(
        {
            "model": {"source": "any", "image_size": 32},
            "precision": "int8",
            "calibration": {"path": "synthetic", "samples": 2},
            "evaluation": {"path": "synthetic", "samples": 2},
            "gates": {"max_drop_points": 1},
            **changes,
        }
    )


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> dict[str, LoadedModel]:
    """Models by their source, instead of what would be loaded."""
    models = {"any": linear(8), "half": linear(4)}

    def load(options: LoadOptions) -> LoadedModel:
        return models[options.source]

    monkeypatch.setattr(workshop_module, "load", load)
    return models


def test_a_graph_is_exported_once_for_all_that_start_from_it(
    loads: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shop = Workshop(recipe(), {"half": Path("half")}, tmp_path, SilentProgress())
    exported, references = [], []
    for name, kept in (("export_parts", exported), ("reference_outputs", references)):
        real = getattr(workshop_module, name)

        def counted(*args: object, real=real, kept=kept) -> object:
            kept.append(args)
            return real(*args)

        monkeypatch.setattr(workshop_module, name, counted)

    def job(variant: str, precision: str):
        candidate = Candidate(variant, precision, "onnx")
        own = recipe_for(candidate, shop.recipe)
        return shop.job(candidate, own, BundleWriter(tmp_path / "c"))

    first, second = job(ORIGINAL, "fp32"), job(ORIGINAL, "int8")
    assert first.exported is second.exported
    assert first.memories is second.memories
    assert job("half", "int8").exported is not first.exported
    assert shop.whole(shop.recipe) is first.exported
    assert job(ORIGINAL, "w4a16").exported is not first.exported  # another opset
    assert len(exported) == 3
    assert len(references) == 1
    # as a run of its own would have it
    assert first.images.calibration is None
    assert second.images.calibration is not None


def test_a_variant_must_have_the_form_of_the_model(loads: dict[str, LoadedModel], tmp_path: Path):
    loads["half"] = loaded_from_part(
        loads["half"].parts[0], preprocess=Preprocess((32, 32), crop_pct=0.5)
    )
    with pytest.raises(UsageError, match=r"--pruned 'half' reads pictures by"):
        Workshop(recipe(), {"half": Path("half")}, tmp_path, SilentProgress())
    loads["half"] = loaded_from_part(part_from_module(torch.nn.Identity(), classes=7))
    with pytest.raises(UsageError, match=r"--pruned 'half' has the outputs.*vitdeploy prune"):
        Workshop(recipe(), {"half": Path("half")}, tmp_path, SilentProgress())


def test_weights_and_images_are_known_by_content(loads: dict[str, LoadedModel], tmp_path: Path):
    shop = Workshop(recipe(), {"half": Path("half")}, tmp_path, SilentProgress())
    assert len(set(shop.weights.values())) == 2
    assert len(set(shop.image_digests)) == 2


def test_the_recipe_of_a_variant_has_its_folder_and_no_gate():
    made = recipe_of_variant(recipe(), Path("half"))
    assert made.model.source == "half"
    assert made.model.image_size == 32
    assert made.gates.max_drop_points is None
    assert made.calibration == recipe().calibration


def test_packaged_images_are_named_for_a_folder_that_does_not_tell_which_fit():
    bare = recipe(calibration={}, evaluation={})
    named = with_named_images(bare, loaded_from_part(calibration_set="digits"))
    assert str(named.calibration.path).endswith("digits/calib")
    assert str(named.evaluation.path).endswith("digits/eval")
    # the user's own stay, and with them what is compared on: those not drawn to calibrate
    own = recipe(calibration={"path": "mine"}, evaluation={})
    assert with_named_images(own, loaded_from_part()) == own
