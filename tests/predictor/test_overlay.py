import numpy as np
from PIL import Image

from vitdeploy.predictor.overlay import mask_colour, overlay
from vitdeploy.prompts import Prompt

GREY = Image.new("RGB", (60, 40), (128, 128, 128))


def square(left, top, right, bottom):
    mask = np.zeros((40, 60), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_masks_are_tinted_and_outlined_and_the_rest_is_left():
    mask = square(10, 10, 30, 30)
    drawn = np.asarray(overlay(GREY, [mask]))
    assert (drawn[~mask] == 128).all()
    assert tuple(drawn[10, 20]) == mask_colour(0)
    middle = np.round(0.55 * 128 + 0.45 * np.asarray(mask_colour(0)))
    np.testing.assert_array_equal(drawn[20, 20], middle)
    assert np.asarray(GREY).max() == 128


def test_small_masks_stand_in_front():
    small, large = square(15, 15, 20, 20), square(10, 10, 30, 30)
    for masks in ([small, large], [large, small]):
        index = [mask is small for mask in masks].index(True)
        assert tuple(np.asarray(overlay(GREY, masks))[15, 17]) == mask_colour(index)


def test_points_and_box_are_drawn():
    prompt = Prompt(((20.0, 20.0), (40.0, 20.0)), (1, 0), (5, 5, 55, 35))
    drawn = np.asarray(overlay(GREY, [], prompt)).astype(int)
    inside, outside = drawn[20, 20], drawn[20, 40]
    assert inside[1] > inside[0] + 100
    assert outside[0] > outside[1] + 100
    assert tuple(drawn[5, 30]) == (255, 255, 255)


def test_colours_of_neighbours_differ():
    colours = np.array([mask_colour(index) for index in range(40)])
    assert (np.abs(np.diff(colours, axis=0)).sum(1) > 150).all()
    assert len({tuple(colour) for colour in colours}) == 40
