from pathlib import Path

import numpy as np
import pytest

from vitdeploy.data import ImageSet, Picture, Preprocess, load_batches, render, synthetic_set
from vitdeploy.data.pictures import render_with_masks
from vitdeploy.errors import DataError


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(render(picture))


def test_rendering_follows_its_seed():
    first = pixels(Picture(0, 0, 48, 64))
    assert first.shape == (48, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, pixels(Picture(0, 0, 48, 64)))
    assert (first != pixels(Picture(0, 1, 48, 64))).mean() > 0.5
    assert (first != pixels(Picture(1, 0, 48, 64))).mean() > 0.5


def test_pictures_use_the_pixel_range_and_are_not_noise():
    arrays = [pixels(Picture(3, index, 128, 128)).astype(float) for index in range(16)]
    stack = np.stack(arrays)
    assert stack.min() < 20
    assert stack.max() > 235
    # photographs have a mean near the middle; 16 pictures stay well inside these bounds
    assert 60 < stack.mean() < 190
    assert stack.mean(axis=(1, 2, 3)).std() > 10, "all of one brightness"
    assert np.abs(stack[..., 0] - stack[..., 2]).mean() > 10, "no colour"
    for array in arrays:
        assert array.std() > 5, "an empty picture"
    # neighbours of independent noise correlate by 0; those of photographs by over 0.9
    left, right = stack[:, :, :-1].ravel(), stack[:, :, 1:].ravel()
    assert np.corrcoef(left, right)[0, 1] > 0.9


def test_masks_show_what_is_seen_of_each_shape():
    for index in range(12):
        picture = Picture(4, index, 64, 96)
        image, masks = render_with_masks(picture)
        np.testing.assert_array_equal(np.asarray(image), pixels(picture))
        assert 3 <= len(masks) <= 8
        assert masks.shape[1:] == (64, 96)
        assert masks.dtype == bool
        assert masks.sum(0).max() <= 1, "a pixel belongs to the frontmost shape alone"
    hidden = [m.sum() for i in range(60) for m in render_with_masks(Picture(4, i, 64, 96))[1]]
    assert min(hidden) == 0 < max(hidden)  # some shapes lie behind others, or off the picture


def test_a_mask_ends_where_the_colour_changes():
    image, masks = render_with_masks(Picture(3, 0, 256, 256))  # no reference but the picture
    grey = np.asarray(image.convert("L")).astype(float)
    steps = np.abs(np.diff(grey, axis=1))
    edges = np.zeros(steps.shape, bool)
    for mask in masks:
        edges |= np.diff(mask.astype(int), axis=1) != 0
    assert steps[edges].mean() > 3 * steps[~edges].mean()


def test_synthetic_set_behaves_as_any_set():
    drawn = synthetic_set(6, seed=5, size=(40, 48))
    assert isinstance(drawn, ImageSet)
    assert len(drawn) == 6
    assert drawn.origin == drawn.name == "synthetic"
    assert drawn.labels is None
    assert drawn.open(2).size == (48, 40)
    assert drawn.digest() == synthetic_set(6, seed=5, size=(40, 48)).digest()
    assert drawn.digest() != synthetic_set(6, seed=6, size=(40, 48)).digest()
    sample = drawn.sample(3, seed=0)
    assert set(sample.pictures) < set(drawn.pictures)
    batches = list(load_batches(sample, Preprocess((16, 16)), 2))
    assert [array.shape for array, _ in batches] == [(2, 3, 16, 16), (1, 3, 16, 16)]


@pytest.mark.parametrize(("count", "size"), [(0, (8, 8)), (2, (0, 8))])
def test_synthetic_set_of_nothing_is_refused(count, size):
    with pytest.raises(DataError, match=f"cannot render {count} pictures of {size[0]} x 8 pixels"):
        synthetic_set(count, seed=0, size=size)


def test_files_and_pictures_in_one_set_are_refused():
    with pytest.raises(DataError, match="both files and drawn pictures; use one"):
        ImageSet("mixed", (Path("a.png"),), None, (), "user", (Picture(0, 0),))
