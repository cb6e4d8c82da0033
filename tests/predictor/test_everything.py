from typing import NamedTuple

import numpy as np
import pytest
import torch
from torchvision.ops import nms

import vitdeploy
from vitdeploy.data import Preprocess
from vitdeploy.errors import UsageError
from vitdeploy.predictor import EverythingOptions
from vitdeploy.predictor.everything import (
    find_everything,
    mask_box,
    non_maximum_suppression,
    stability_scores,
)
from vitdeploy.predictor.masks import Decoded


class Square(NamedTuple):
    """An object, and how the stand-in sees it."""

    box: tuple[int, int, int, int]
    score: float = 0.95
    halo: int = 0
    """Pixels around it in which the logits are unsure."""


class StandIn:
    """Finds the square that is pointed at; its first mask is nonsense, as for a clear prompt."""

    picture_size = (40, 60)
    preprocess = Preprocess((60, 60), crop_mode="corner")
    masks_per_prompt = 4

    def __init__(self, *squares: Square) -> None:
        self.squares = squares
        self.batches: list[int] = []

    def decode(self, prompts):
        self.batches.append(len(prompts))
        logits = np.full((len(prompts), 4, *self.picture_size), -8, np.float32)
        logits[:, 0] = 8
        scores = np.full((len(prompts), 4), 0.1, np.float32)
        scores[:, 0] = 1
        for row, prompt in enumerate(prompts):
            (x, y), *_ = prompt.points
            for square in self.squares:
                left, top, right, bottom = square.box
                if left <= x < right and top <= y < bottom:
                    halo = square.halo
                    wide = np.s_[
                        max(top - halo, 0) : bottom + halo, max(left - halo, 0) : right + halo
                    ]
                    logits[row, 2][wide] = -0.5
                    logits[row, 2, top:bottom, left:right] = 8
                    scores[row, 2] = square.score
        low = np.zeros((len(prompts), 4, 10, 10), np.float32)
        return Decoded(logits, scores, low, np.zeros((len(prompts), 2), np.float32))


SMALL = EverythingOptions(points_per_side=8)


def test_each_object_is_found_once():
    large, small = Square((5, 5, 30, 30), 0.9), Square((40, 10, 55, 20), 0.97)
    found = find_everything(StandIn(large, small), SMALL)
    # the best predicted IoU first, though several points fell into each
    assert [mask.box for mask in found] == [small.box, large.box]
    assert [mask.area for mask in found] == [150, 625]
    assert [mask.score for mask in found] == pytest.approx([0.97, 0.9])
    assert [mask.stability for mask in found] == [1.0, 1.0]
    expected = np.zeros((40, 60), bool)
    expected[10:20, 40:55] = True
    np.testing.assert_array_equal(found[0].mask, expected)
    x, y = found[0].point
    assert expected[int(y), int(x)]


def test_masks_that_are_thought_bad_unstable_or_small_are_left_out():
    bad, blurred = Square((0, 0, 20, 20), 0.87), Square((30, 0, 50, 20), halo=3)
    little = Square((0, 25, 12, 37))
    stand_in = StandIn(bad, blurred, little)
    assert [mask.box for mask in find_everything(stand_in, SMALL)] == [little.box]
    options = EverythingOptions(points_per_side=8, pred_iou_thresh=0.86, min_area=145)
    assert [mask.box for mask in find_everything(stand_in, options)] == [bad.box]
    options = EverythingOptions(points_per_side=8, stability_score_thresh=0.6, min_area=144)
    assert {mask.box for mask in find_everything(stand_in, options)} == {blurred.box, little.box}
    options = EverythingOptions(points_per_side=8, stability_score_offset=0.4)
    assert {mask.box for mask in find_everything(stand_in, options)} == {blurred.box, little.box}
    assert find_everything(stand_in, EverythingOptions(8, pred_iou_thresh=0.99)) == ()


def test_all_points_are_asked_in_batches():
    stand_in = StandIn()
    find_everything(stand_in, EverythingOptions(points_per_side=9))
    assert stand_in.batches == [32, 32, 17]


@pytest.mark.parametrize(
    ("picture", "frame", "count"),
    [((2000, 2500), 60, 3), ((40, 60), 2048, 4), ((9000, 9000), 60, 1)],
)
def test_large_masks_are_made_few_at_a_time(picture, frame, count):
    class Refusing(StandIn):
        picture_size = picture
        preprocess = Preprocess((frame, frame), crop_mode="corner")

        def decode(self, prompts):
            raise MemoryError(len(prompts))

    with pytest.raises(MemoryError) as raised:
        find_everything(Refusing(), SMALL)
    assert raised.value.args == (count,)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_suppression_is_torchvisions(threshold):
    rng = np.random.default_rng(4)
    corner = rng.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 50, (200, 2))], axis=1)
    scores = rng.permutation(200) / 200
    kept = non_maximum_suppression(boxes, scores, threshold)
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert 5 < len(kept) < 180
    assert kept == expected.tolist()


def test_nothing_is_suppressed_of_nothing():
    assert non_maximum_suppression(np.zeros((0, 4)), np.zeros(0), 0.7) == []


def test_stability_compares_two_thresholds():
    logits = np.array([[[2.0, 0.5, -0.5, -2.0]], [[-9.0] * 4]], np.float32)
    assert stability_scores(logits, 1.0).tolist() == [1 / 3, 0.0]
    assert stability_scores(logits, 0.0).tolist() == [1.0, 0.0]


def test_a_box_ends_with_its_mask():
    mask = np.zeros((7, 9), bool)
    assert mask_box(mask) == (0, 0, 0, 0)
    mask[2, 3] = mask[4, 8] = True
    assert mask_box(mask) == (3, 2, 9, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"points_per_side": 0}, "points_per_side is 0; allowed: 1 and more"),
        ({"pred_iou_thresh": 1.5}, r"pred_iou_thresh is 1.5; allowed: an IoU in 0\.\.1"),
        ({"stability_score_thresh": float("nan")}, "stability_score_thresh is nan"),
        ({"stability_score_offset": -1}, "stability_score_offset is -1; allowed: 0 and more"),
        ({"box_nms_thresh": -0.1}, "box_nms_thresh is -0.1"),
        ({"min_area": -1}, "min_area is -1"),
    ],
)
def test_options_out_of_range_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        EverythingOptions(**fields)


def test_a_bundle_finds_what_its_masks_say(sam, picture):
    options = EverythingOptions(4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1)
    with vitdeploy.load(sam[0]) as predictor:
        found = predictor.set_image(picture).everything(options)
        scores = [mask.score for mask in found]
        assert scores == sorted(scores, reverse=True)
        best = found[0]
        three = predictor.predict([best.point], multimask=True)
    index = int(three.scores.argmax())
    # prompts that run together are summed in another order
    assert best.score == pytest.approx(float(three.scores[index]), abs=1e-4)
    assert (best.mask != three.masks[index]).mean() < 1e-3
    assert (best.area, best.box) == (best.mask.sum(), mask_box(best.mask))
