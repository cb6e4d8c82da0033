import numpy as np
import pytest

from vitdeploy.data import Preprocess
from vitdeploy.evaluation import drop_points
from vitdeploy.joined import Asked, golden_inputs, golden_outputs, reference_of
from vitdeploy.mask_fidelity import WHOLE, golden_rows, judge
from vitdeploy.masks import boundary_iou

PREPROCESS = Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "corner")


def square(side: int) -> np.ndarray:
    mask = np.zeros((32, 32), bool)
    mask[:side, :side] = True
    return mask


def asked(truth: np.ndarray | None = None) -> Asked:
    """Two prompts: a point, whose best mask is one of the last, and a box, with the first."""
    feeds = {
        "point_coords": np.zeros((2, 2, 2), np.float32),
        "point_labels": np.array([[1, -1], [2, 3]], np.float32),
        "mask_input": np.zeros((1, 1, 8, 8), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([32, 32], np.float32),
    }
    return Asked(feeds, truth)


def outputs(sides: list[list[int]], quality: list[list[float]]) -> dict[str, np.ndarray]:
    masks = np.array([[np.where(square(s), 1.0, -1.0) for s in row] for row in sides], np.float32)
    low = masks[..., ::4, ::4]
    return {
        "masks": masks,
        "iou_predictions": np.array(quality, np.float32),
        "low_res_masks": low,
    }


REFERENCE = outputs([[8, 16, 20], [12, 4, 4]], [[0.1, 0.9, 0.5], [0.8, 0.2, 0.2]])


def values(rows) -> dict[str, float]:
    assert {(row.target, row.part, row.output) for row in rows} == {("onnx", WHOLE, "masks")}
    return {row.metric: row.value for row in rows}


def judged(own: dict[str, np.ndarray], truth: np.ndarray | None = None) -> dict[str, float]:
    reference = reference_of([REFERENCE], (asked(truth),), PREPROCESS)
    rows = judge("onnx", reference, [own], PREPROCESS).rows
    return values(rows)


def test_equal_masks_score_one():
    assert judged(REFERENCE) == {
        "mask_iou_mean": 1.0,
        "mask_iou_min": 1.0,
        "boundary_iou_mean": 1.0,
        "mask_choice_agreement": 100.0,
        "iou_prediction_error": 0.0,
    }


def test_a_smaller_mask_scores_its_share():
    own = outputs([[8, 12, 20], [12, 4, 4]], [[0.1, 0.7, 0.5], [0.8, 0.2, 0.2]])
    found = judged(own)
    assert found["mask_iou_min"] == pytest.approx((12 / 16) ** 2)
    assert found["mask_iou_mean"] == pytest.approx((1 + (12 / 16) ** 2) / 2)
    edge = boundary_iou(square(16), square(12))
    assert found["boundary_iou_mean"] == pytest.approx((1 + edge) / 2)
    assert found["iou_prediction_error"] == pytest.approx(0.1)
    assert found["mask_choice_agreement"] == 100.0


def test_another_choice_is_told_apart_from_another_mask():
    own = outputs([[8, 16, 20], [12, 4, 4]], [[0.1, 0.4, 0.5], [0.8, 0.2, 0.2]])
    found = judged(own)
    assert found["mask_iou_min"] == 1.0
    assert found["mask_choice_agreement"] == 50.0


def test_the_truth_is_compared_with_what_each_model_shows():
    truth = np.stack([square(20), square(12)])
    own = outputs([[8, 16, 20], [12, 4, 4]], [[0.1, 0.4, 0.5], [0.8, 0.2, 0.2]])
    reference = reference_of([REFERENCE], (asked(truth),), PREPROCESS)
    rows = judge("onnx", reference, [own], PREPROCESS).rows
    (row,) = [row for row in rows if row.metric == "truth_iou_mean"]
    assert row.reference == pytest.approx((1 + (16 / 20) ** 2) / 2)
    assert row.value == 1.0
    assert row.n == 2


def test_a_drop_is_a_hundred_times_the_iou_lost():
    own = outputs([[8, 12, 20], [12, 4, 4]], [[0.1, 0.9, 0.5], [0.8, 0.2, 0.2]])
    reference = reference_of([REFERENCE], (asked(),), PREPROCESS)
    rows = judge("onnx", reference, [own], PREPROCESS).rows
    metric, points = drop_points(rows, "onnx")
    assert metric == "mask_iou_mean"
    assert points == pytest.approx(100 * (1 - (12 / 16) ** 2) / 2)


def test_golden_outputs_are_judged_by_their_low_resolution_masks():
    inputs = golden_inputs([asked(), asked()])
    expected = golden_outputs([REFERENCE, REFERENCE])
    smaller = outputs([[8, 12, 20], [12, 4, 4]], [[0.1, 0.9, 0.5], [0.8, 0.2, 0.2]])
    seen = golden_outputs([REFERENCE, smaller])
    same = values(golden_rows("onnx", inputs, (expected, expected), PREPROCESS))
    assert same["mask_iou_min"] == 1.0
    found = values(golden_rows("onnx", inputs, (expected, seen), PREPROCESS))
    # half a low-resolution pixel at each edge is what resizing may add
    assert found["mask_iou_min"] == pytest.approx((12 / 16) ** 2, abs=0.06)
    assert found["mask_iou_mean"] > 0.85
