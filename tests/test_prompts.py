import numpy as np
import pytest

from vitdeploy.data import Preprocess
from vitdeploy.errors import UsageError
from vitdeploy.prompts import (
    INSIDE,
    OUTSIDE,
    Prompt,
    best_masks,
    grid_prompts,
    object_prompts,
    point,
    prompt_feeds,
)

CORNER = Preprocess((128, 128), crop_mode="corner")
SQUASH = Preprocess((128, 128), crop_mode="squash")


def test_points_get_one_padding_point_and_boxes_their_corners():
    prompts = [
        point(10, 20),
        Prompt(((1, 2), (3, 4)), (INSIDE, OUTSIDE)),
        Prompt(((5, 6),), (INSIDE,), (10, 20, 30, 40)),
        Prompt(box=(0, 1, 2, 3)),
    ]
    feeds = prompt_feeds(prompts, (128, 128), CORNER, (32, 32))
    assert feeds["point_labels"].tolist() == [
        [1, -1, -1],
        [1, 0, -1],
        [1, 2, 3],
        [2, 3, -1],
    ]
    assert feeds["point_coords"][2].tolist() == [[5, 6], [10, 20], [30, 40]]
    assert feeds["point_coords"][0].tolist() == [[10, 20], [0, 0], [0, 0]]
    assert feeds["mask_input"].shape == (1, 1, 32, 32)
    assert feeds["has_mask_input"].tolist() == [0]
    assert feeds["orig_im_size"].tolist() == [128, 128]
    assert {array.dtype for array in feeds.values()} == {np.dtype("float32")}


def test_places_follow_the_picture_into_the_models_frame():
    wide = (100, 333)  # height, width
    corner = prompt_feeds([point(333, 100)], wide, CORNER, (32, 32))["point_coords"][0, 0]
    # the longest side becomes 128, the other int(100 * 128 / 333 + 0.5) = 38
    np.testing.assert_allclose(corner, [128, 38], rtol=1e-6)
    squash = prompt_feeds([point(333, 100)], wide, SQUASH, (32, 32))["point_coords"][0, 0]
    np.testing.assert_allclose(squash, [128, 128], rtol=1e-6)


def test_the_first_mask_is_for_a_box_or_several_points():
    quality = np.array([[0.9, 0.1, 0.5, 0.2]] * 3, np.float32)
    labels = np.array([[1, -1], [2, 3], [1, 0]], np.float32)
    assert best_masks(quality, labels).tolist() == [2, 0, 0]
    assert best_masks(quality[:, :1], labels).tolist() == [0, 0, 0]


def test_a_grid_covers_the_picture_row_by_row():
    prompts = grid_prompts((100, 200), 2)
    assert [p.points[0] for p in prompts] == [(50, 25), (150, 25), (50, 75), (150, 75)]
    assert {p.labels for p in prompts} == {(INSIDE,)}
    with pytest.raises(UsageError, match="grid of 0 points a side"):
        grid_prompts((10, 10), 0)


def test_an_object_gets_a_point_deep_inside_and_its_box():
    ring = np.zeros((40, 60), bool)
    ring[5:35, 10:50] = True
    ring[10:30, 20:45] = False
    inside, box = object_prompts(ring)
    x, y = (int(v) for v in inside.points[0])
    assert ring[y - 2 : y + 3, x - 2 : x + 3].all()
    assert box.box == (10, 5, 50, 35)
    single = np.zeros((5, 5), bool)
    single[3, 1] = True
    assert object_prompts(single)[0].points == ((1.0, 3.0),)
    with pytest.raises(UsageError, match="empty mask"):
        object_prompts(np.zeros((5, 5), bool))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "an empty prompt; give at least one point or a box"),
        ({"points": ((1, 2),)}, "one label a point"),
        ({"points": ((1, 2),), "labels": (2,)}, r"labels \(2,\); allowed: .* 1 inside"),
        ({"box": (5, 0, 5, 9)}, "has no area; allowed: left, top, right, bottom"),
    ],
)
def test_bad_prompts_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        Prompt(**fields)
