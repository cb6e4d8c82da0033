import numpy as np
import pytest

from vitdeploy.errors import DataError
from vitdeploy.masks import boundary, boundary_iou, eroded, mask_iou


def square(left: int, top: int, side: int, size: int = 60) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def slow_erosion(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixel by pixel: inside where the whole square around lies inside."""
    padded = np.pad(mask, width)
    result = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        result[y, x] = padded[y : y + 2 * width + 1, x : x + 2 * width + 1].all()
    return result


def test_mask_iou_counts_pixels():
    assert mask_iou(square(0, 0, 10), square(0, 0, 10)) == 1.0
    assert mask_iou(square(0, 0, 10), square(20, 20, 10)) == 0.0
    # 50 of 150 pixels
    assert mask_iou(square(0, 0, 10), square(5, 0, 10)) == pytest.approx(50 / 150)
    empty = np.zeros((60, 60), bool)
    assert mask_iou(empty, empty) == 1.0
    assert mask_iou(empty, square(0, 0, 1)) == 0.0


@pytest.mark.parametrize("width", [1, 2, 5])
def test_erosion_is_that_of_its_definition(width):
    rng = np.random.default_rng(0)
    cells = rng.random((6, 8)) > 0.25
    mask = np.kron(cells, np.ones((7, 6), bool)).astype(bool)
    np.testing.assert_array_equal(eroded(mask, width), slow_erosion(mask, width))
    np.testing.assert_array_equal(boundary(mask, width), mask & ~slow_erosion(mask, width))


def test_the_edge_of_the_picture_is_a_boundary():
    full = np.ones((10, 12), bool)
    assert boundary(full, 1).sum() == 2 * 12 + 2 * 8


def test_boundary_iou_is_stricter_than_mask_iou_for_large_objects():
    # 2 % of a diagonal of 283 pixels: a boundary 6 pixels wide
    large, shrunk = square(20, 20, 150, 200), square(22, 22, 146, 200)
    ring, inner = 150**2 - 138**2, 146**2 - 134**2
    shared = 146**2 - 138**2
    assert boundary_iou(large, shrunk) == pytest.approx(shared / (ring + inner - shared))
    assert mask_iou(large, shrunk) > 0.94
    assert boundary_iou(large, shrunk) < 0.51


def test_small_pictures_have_a_boundary_of_one_pixel():
    assert boundary_iou(square(2, 2, 6, 10), square(2, 2, 6, 10)) == 1.0
    assert boundary_iou(square(2, 2, 6, 10), square(3, 3, 4, 10)) == 0.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match=r"\(60, 60\) and \(50, 50\) pixels cannot be compared"):
        mask_iou(square(0, 0, 5), square(0, 0, 5, 50))
