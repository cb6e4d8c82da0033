"""Which images a run takes, in every combination of what was given."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.model_folders import write_images
from tests.small_models import loaded_from_part
from vitdeploy import image_sets
from vitdeploy.errors import CompressionError, DataError, UsageError
from vitdeploy.image_sets import Chosen, choose_sets, reject_missing_calibration, stamps_of
from vitdeploy.models.spec import TensorSpec
from vitdeploy.recipe import Recipe, recipe_from_dict


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("sets") / "images", per_class=10)


def recipe(**sections) -> Recipe:
    return recipe_from_dict({"model": {"source": "vit-tiny"}, "precision": "int8", **sections})


def paths(chosen: Chosen) -> tuple[set[Path], set[Path]]:
    return set(chosen.require_calibration().images.paths), set(chosen.evaluation.images.paths)


def test_float_precisions_need_no_calibration_images():
    chosen = choose_sets(recipe(precision="fp16"), loaded_from_part())
    assert chosen.calibration is None
    assert len(chosen.evaluation) == 12
    with pytest.raises(CompressionError, match="--calib PATH"):
        chosen.require_calibration()


def test_without_paths_the_packaged_photographs_stand_in_and_are_stamped():
    asked = recipe(calibration={"samples": 5}, model={"source": "vit-tiny", "random_weights": True})
    chosen = choose_sets(asked, loaded_from_part())
    assert len(chosen.require_calibration()) == 5
    assert chosen.labels is None
    assert stamps_of(chosen, asked) == (
        "random-weights",
        "calibration: generic",
        "evaluation: generic",
    )


def test_a_models_own_packaged_set_is_no_stand_in():
    asked = recipe(evaluation={"samples": 20})
    loaded = loaded_from_part(calibration_set="digits", label_names=tuple("0123456789"))
    chosen = choose_sets(asked, loaded)
    assert stamps_of(chosen, asked) == ()
    assert len(chosen.require_calibration()) == 256
    assert chosen.labels is not None
    assert np.bincount(chosen.labels).tolist() == [2] * 10


def test_an_unknown_packaged_set_is_refused():
    with pytest.raises(DataError, match="no packaged image set 'cats'"):
        choose_sets(recipe(), loaded_from_part(calibration_set="cats"))


def test_rendered_pictures_are_stamped_and_differ_between_both_sets():
    section = {"path": "synthetic", "samples": 3}
    asked = recipe(calibration=section, evaluation=section)
    chosen = choose_sets(asked, loaded_from_part())
    assert stamps_of(chosen, asked) == ("calibration: synthetic", "evaluation: synthetic")
    assert not np.array_equal(chosen.example, chosen.evaluation.first(3))


def test_what_calibration_leaves_over_is_compared_on(images: Path):
    asked = recipe(calibration={"path": str(images), "samples": 9})
    chosen = choose_sets(asked, loaded_from_part())
    calibration, evaluation = paths(chosen)
    assert calibration.isdisjoint(evaluation)
    assert len(calibration) == 9
    # as many as were drawn to calibrate on, unless asked otherwise
    assert len(evaluation) == 9
    assert "not used to calibrate" in chosen.notes[0]
    assert stamps_of(chosen, asked) == ()
    every = recipe(calibration={"path": str(images), "samples": 9}, evaluation={"samples": 1000})
    assert len(choose_sets(every, loaded_from_part()).evaluation) == 21


def test_too_few_left_over_means_the_calibration_images_themselves_and_says_so(images: Path):
    chosen = choose_sets(
        recipe(calibration={"path": str(images), "samples": 20}), loaded_from_part()
    )
    calibration, evaluation = paths(chosen)
    assert calibration == evaluation
    assert "--eval PATH" in chosen.notes[0]


def test_evaluation_images_of_ones_own_bring_their_labels(images: Path):
    chosen = choose_sets(recipe(evaluation={"path": str(images), "samples": 6}), loaded_from_part())
    assert chosen.notes == ()
    assert chosen.labels is not None
    assert sorted(chosen.labels.tolist()) == [0, 0, 1, 1, 2, 2]


def test_labels_mean_nothing_to_a_model_without_classes(images: Path):
    loaded = loaded_from_part(task="features", label_names=())
    headless = dataclasses.replace(
        loaded.parts[0], outputs=(TensorSpec("pooler_output", ("batch", 8)),)
    )
    loaded = dataclasses.replace(loaded, parts=(headless,))
    chosen = choose_sets(recipe(evaluation={"path": str(images)}), loaded)
    assert chosen.labels is None
    assert len(chosen.evaluation) == 30


def test_of_a_model_with_prompts_few_large_pictures_are_compared(
    images: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(image_sets, "_MOST_PROMPTED_PIXELS", 5 * 32 * 32)
    loaded = loaded_from_part()
    prompted = dataclasses.replace(loaded.parts[0], name="decoder", example=lambda _: {})
    several = dataclasses.replace(loaded, parts=(*loaded.parts, prompted))
    section = {"path": str(images)}
    chosen = choose_sets(recipe(evaluation=section), several)
    assert len(chosen.evaluation) == 5
    assert "compared on 5 of 30 pictures" in chosen.notes[0]
    assert len(choose_sets(recipe(evaluation={**section, "samples": 9}), several).evaluation) == 9
    assert len(choose_sets(recipe(evaluation=section), loaded).evaluation) == 30


def test_classes_that_the_model_lacks_are_refused(images: Path):
    loaded = loaded_from_part(label_names=("cat", "dog", "fish"))
    with pytest.raises(DataError, match="Allowed: cat, dog, fish"):
        choose_sets(recipe(evaluation={"path": str(images)}), loaded)


def test_labels_leave_out_what_could_not_be_read(tmp_path: Path):
    folder = write_images(tmp_path / "images", per_class=10)
    (folder / "green" / "03.png").write_bytes(b"broken")
    chosen = choose_sets(recipe(evaluation={"path": str(folder)}), loaded_from_part())
    for _ in chosen.evaluation.batches(8):
        pass
    assert chosen.labels is not None
    assert np.bincount(chosen.labels).tolist() == [10, 9, 10]
    described = chosen.evaluation.describe()
    assert (described.images, described.skipped) == (29, 1)
    assert described.name == "images"


def test_the_example_is_the_first_readable_images(images: Path):
    chosen = choose_sets(recipe(calibration={"path": str(images)}), loaded_from_part())
    assert chosen.example.shape == (3, 3, 32, 32)
    assert chosen.example.dtype == np.float32
    (first, _), *_ = chosen.require_calibration().batches(1)
    np.testing.assert_array_equal(chosen.example[:1], first)
    # looking at the first images is no pass over the set
    assert chosen.evaluation.first(100).shape[0] == len(chosen.evaluation)


def test_a_model_of_ones_own_needs_images_of_ones_own(tmp_path: Path, images: Path):
    own = {"source": str(tmp_path)}
    with pytest.raises(UsageError, match="--calib FOLDER"):
        reject_missing_calibration(recipe(model=own))
    reject_missing_calibration(recipe(model=own, calibration={"path": str(images)}))
    reject_missing_calibration(recipe(model=own, calibration={"path": "synthetic"}))
    reject_missing_calibration(recipe(model=own, precision="fp16"))
    reject_missing_calibration(recipe())


@pytest.mark.parametrize("section", ["calibration", "evaluation"])
def test_a_missing_path_is_found_before_any_work(section: str, tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        reject_missing_calibration(recipe(**{section: {"path": str(tmp_path / "none")}}))
