import numpy as np
import pytest

from vitdeploy.errors import DataError
from vitdeploy.masks import MaskScores, boundary, boundary_iou, eroded, mask_iou, score_masks


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


def test_scores_are_mean_and_worst_of_logits_and_masks_of_any_size():
    first = square(0, 0, 10)
    logits = np.where(square(5, 0, 10), 3.0, -0.5).astype(np.float32)
    same = square(10, 10, 50, 80)
    scores = score_masks([(first, logits), (same, same)])
    assert scores.iou_mean == pytest.approx((1 / 3 + 1) / 2)
    assert scores.iou_min == pytest.approx(1 / 3)
    expected = boundary_iou(first, square(5, 0, 10))
    assert scores.boundary_iou_mean == pytest.approx((1 + expected) / 2)
    assert scores.boundary_iou_min == pytest.approx(expected)
    assert scores.count == 2


def test_the_names_are_those_of_reports():
    assert MaskScores(0.9, 0.5, 0.8, 0.4, 3).named() == {
        "mask_iou_mean": 0.9,
        "mask_iou_min": 0.5,
        "boundary_iou_mean": 0.8,
        "boundary_iou_min": 0.4,
    }


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match=r"\(60, 60\) and \(50, 50\) pixels cannot be compared"):
        mask_iou(square(0, 0, 5), square(0, 0, 5, 50))
    with pytest.raises(DataError, match="no masks to compare"):
        score_masks([])
