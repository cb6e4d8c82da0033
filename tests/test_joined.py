"""Prompts on pictures, and a decoder fed with an encoder's outputs."""

import numpy as np
import pytest
from PIL import Image

from vitdeploy.bundle import TensorInfo
from vitdeploy.data import Preprocess, packaged_set, scan_images
from vitdeploy.errors import DataError
from vitdeploy.joined import (
    Asked,
    asked_from_golden,
    asked_of,
    decoded,
    features_of,
    follows,
    golden_inputs,
    golden_outputs,
    one_prompt,
    outputs_from_golden,
    reference_of,
    shown_masks,
)

PREPROCESS = Preprocess((128, 128), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "corner")
SCENES = packaged_set("scenes", "eval")


class SquareDecoder:
    """Stands in for a decoder: mask m of a prompt is inside where the embedding is above m."""

    engine = "stand-in 1"
    threads = 1

    def __init__(self) -> None:
        self.seen: list[dict[str, np.ndarray]] = []

    def __call__(self, feeds):
        self.seen.append(dict(feeds))
        prompts = len(feeds["point_coords"])
        height, width = feeds["orig_im_size"].astype(int)
        levels = np.arange(3, dtype=np.float32)
        value = feeds["image_embeddings"].mean() - levels
        low = np.broadcast_to(value[None, :, None, None], (prompts, 3, 32, 32)).astype(np.float32)
        quality = np.broadcast_to(0.9 - 0.1 * levels, (prompts, 3)).astype(np.float32)
        masks = np.broadcast_to(value[None, :, None, None], (prompts, 3, height, width))
        return {"masks": masks, "iou_predictions": quality, "low_res_masks": low}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (300, 200)).save(tmp_path / "wide.png")
    Image.new("RGB", (1500, 3000)).save(tmp_path / "large.png")
    return scan_images(tmp_path)


def test_known_objects_are_asked_for_by_a_point_and_a_box_each():
    asked = asked_of(SCENES, 0, PREPROCESS, (32, 32))
    assert asked.truth is not None
    count = len(asked.truth)
    assert count % 2 == 0
    assert asked.feeds["point_coords"].shape == (count, 2, 2)
    np.testing.assert_array_equal(asked.feeds["point_labels"][:2], [[1, -1], [2, 3]])
    np.testing.assert_array_equal(asked.truth[0], asked.truth[1])
    assert asked.truth.shape[1:] == asked.size
    x, y = asked.feeds["point_coords"][0, 0] * max(asked.size) / 128
    assert asked.truth[0][int(y), int(x)]


def test_other_pictures_get_the_same_few_prompts(folder):
    wide = asked_of(folder, 1, PREPROCESS, (32, 32))
    assert wide.truth is None
    assert wide.size == (200, 300)
    assert wide.feeds["point_labels"].tolist() == [[1, -1], [2, 3]] * 2 + [[1, -1]] * 2
    # the longest side is 128 of the model's pixels
    np.testing.assert_allclose(wide.feeds["point_coords"][0, 0], [75 * 128 / 300, 50 * 85 / 200])
    assert asked_of(folder, 0, PREPROCESS, (32, 32)).size == (1024, 512)


def test_a_part_follows_where_a_name_is_shared():
    made = {"image_encoder": {"image_embeddings": np.ones((2, 1)), "other": np.ones((2, 1))}}
    inputs = (TensorInfo("image_embeddings", (1, 1)), TensorInfo("point_coords", (1, 1)))
    assert follows(inputs, made)
    assert list(features_of(inputs, made)) == ["image_embeddings"]
    assert not follows((TensorInfo("pixel_values", (1, 3)),), made)


def test_each_picture_gets_its_own_embedding_and_prompts():
    asked = [asked_of(SCENES, index, PREPROCESS, (32, 32)) for index in (0, 1)]
    features = {"image_embeddings": np.array([[[[1.5]]], [[[-0.5]]]], np.float32)}
    runner = SquareDecoder()
    outputs = list(decoded(runner, features, asked))
    assert [feeds["image_embeddings"].item() for feeds in runner.seen] == [1.5, -0.5]
    assert [len(o["masks"]) for o in outputs] == [len(a.feeds["point_coords"]) for a in asked]
    reference = reference_of(outputs, tuple(asked), PREPROCESS)
    # of a point the best of the later masks is shown, of a box the first
    assert reference.shown[0].choice[:2].tolist() == [1, 0]
    assert reference.shown[0].masks[0].all()
    assert not reference.shown[1].masks.any()


def test_a_choice_may_be_given_and_low_resolution_will_do():
    asked = asked_of(SCENES, 0, PREPROCESS, (32, 32))
    features = {"image_embeddings": np.array([[[[1.5]]]], np.float32)}
    (outputs,) = decoded(SquareDecoder(), features, [asked])
    worst = np.full(len(outputs["masks"]), 2)
    assert not shown_masks(outputs, asked, PREPROCESS, worst).masks.any()
    own = shown_masks(outputs, asked, PREPROCESS)
    del outputs["masks"]
    np.testing.assert_array_equal(shown_masks(outputs, asked, PREPROCESS).masks, own.masks)


def test_an_output_that_is_not_finite_is_refused():
    asked = asked_of(SCENES, 0, PREPROCESS, (32, 32))
    features = {"image_embeddings": np.array([[[[np.nan]]]], np.float32)}
    with pytest.raises(DataError, match=r"'masks' of the mask decoder on stand-in 1 holds NaN"):
        list(decoded(SquareDecoder(), features, [asked]))


def test_golden_tensors_come_back_as_they_were():
    asked = [asked_of(SCENES, index, PREPROCESS, (32, 32)) for index in (0, 1, 2)]
    features = {"image_embeddings": np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1)}
    outputs = list(decoded(SquareDecoder(), features, asked))
    again = asked_from_golden(golden_inputs(asked))
    assert len(again) == 2
    for question, original in zip(again, asked, strict=False):
        assert question.size == original.size
        for name in ("point_coords", "point_labels"):
            np.testing.assert_array_equal(question.feeds[name], original.feeds[name][:2])
    kept = outputs_from_golden(golden_outputs(outputs[:2]))
    assert set(kept[0]) == {"iou_predictions", "low_res_masks"}
    np.testing.assert_array_equal(kept[1]["low_res_masks"], outputs[1]["low_res_masks"][:2])


def test_one_prompt_is_the_first():
    asked = asked_of(SCENES, 0, PREPROCESS, (32, 32))
    feeds = one_prompt(asked)
    assert feeds["point_coords"].shape == (1, 2, 2)
    assert isinstance(asked, Asked)
    assert len(asked.feeds["point_coords"]) > 1
