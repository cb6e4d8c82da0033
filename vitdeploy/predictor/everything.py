"""Masks of everything in a picture: prompts on a grid, then the filters of segment-anything.

The defaults are those of its `SamAutomaticMaskGenerator` without crops. numpy alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import UsageError
from vitdeploy.masks import Mask
from vitdeploy.prompts import grid_prompts

if TYPE_CHECKING:
    from vitdeploy.predictor.masks import MaskPredictor

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are the first ones outside."""

_LARGEST_RUN = 2**26
"""Pixels of all masks that one run of the decoder makes: 256 MB in float32."""
_LARGEST_BATCH = 32
"""Prompts in one run; TensorRT's engines are built for no more."""


@dataclass(frozen=True)
class EverythingOptions:
    """How many points are asked, and which masks are kept.

    Raises:
        UsageError: a value is out of range.
    """

    points_per_side: int = 32
    """The grid has this many rows and columns."""
    pred_iou_thresh: float = 0.88
    """Least IoU that the model predicts for a mask it gives."""
    stability_score_thresh: float = 0.95
    """Least IoU of the masks at logits above and below 0 by `stability_score_offset`."""
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    """Of two masks whose boxes have a larger IoU, the one with the better prediction stays."""
    min_area: int = 0
    """Pixels; smaller masks are left out."""

    def __post_init__(self) -> None:
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value:g}; allowed: an IoU in 0..1.")
        for name, least in (
            ("points_per_side", 1),
            ("stability_score_offset", 0),
            ("min_area", 0),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise UsageError(f"{name} is {value:g}; allowed: {least} and more.")


class FoundMask(NamedTuple):
    """One mask of everything."""

    mask: NDArray[np.bool_]
    """(height, width) of the picture; True is inside."""
    score: float
    """IoU with the true mask, as the model predicts it."""
    stability: float
    """IoU of the masks at two thresholds; see `EverythingOptions`."""
    area: int
    """Pixels inside."""
    box: Box
    point: tuple[float, float]
    """x and y in pixels of the point that was asked."""


class _Candidate(NamedTuple):
    """A mask that passed all filters but the last; kept as its box alone, to save memory."""

    inside: NDArray[np.bool_]
    score: float
    stability: float
    box: Box
    point: tuple[float, float]


def find_everything(
    predictor: "MaskPredictor", options: EverythingOptions
) -> tuple[FoundMask, ...]:
    """Return the masks found in the picture of `predictor`, the best predicted IoU first.

    Raises:
        UsageError: no picture is set.
    """
    candidates = list(_candidates(predictor, options))
    boxes = np.array([candidate.box for candidate in candidates], np.float64).reshape(-1, 4)
    scores = np.array([candidate.score for candidate in candidates])
    kept = non_maximum_suppression(boxes, scores, options.box_nms_thresh)
    picture = predictor.picture_size
    return tuple(_found(candidates[index], picture) for index in kept)


def stability_scores(logits: NDArray[np.float32], offset: float) -> NDArray[np.float64]:
    """Return for masks (K, H, W) the IoU of where they exceed `offset` and `-offset`, (K,)."""
    inner = np.count_nonzero(logits > offset, axis=(-2, -1))
    outer = np.count_nonzero(logits > -offset, axis=(-2, -1))
    return np.asarray(inner / np.maximum(outer, 1))


def non_maximum_suppression(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], threshold: float
) -> list[int]:
    """Return which boxes to keep, the best score first.

    Args:
        boxes: (K, 4) left, top, right and bottom.
        scores: (K,).
        threshold: a box goes where its IoU with a better one that stays exceeds this.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    waiting = np.argsort(-scores, kind="stable")
    kept = []
    while len(waiting):
        best, waiting = int(waiting[0]), waiting[1:]
        kept.append(best)
        first = np.maximum(boxes[waiting, :2], boxes[best, :2])
        last = np.minimum(boxes[waiting, 2:], boxes[best, 2:])
        shared = np.prod(np.maximum(last - first, 0), axis=1)
        iou = shared / (areas[waiting] + areas[best] - shared)
        waiting = waiting[iou <= threshold]
    return kept


def mask_box(mask: Mask) -> Box:
    """Return the box around `mask` (H, W); four zeros where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _candidates(predictor: "MaskPredictor", options: EverythingOptions) -> Iterator[_Candidate]:
    prompts = grid_prompts(predictor.picture_size, options.points_per_side)
    size = _batch_size(predictor)
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        decoded = predictor.decode(batch)
        # the first mask is for clear prompts, where there are others for a single point
        first = 0 if predictor.masks_per_prompt == 1 else 1
        scores = decoded.scores[:, first:]
        for row, column in np.argwhere(scores > options.pred_iou_thresh):
            logits = decoded.logits[row, first + column]
            stability = float(stability_scores(logits[None], options.stability_score_offset)[0])
            mask = logits > 0
            area = np.count_nonzero(mask)
            if stability >= options.stability_score_thresh and area > max(options.min_area - 1, 0):
                left, top, right, bottom = box = mask_box(mask)
                inside = mask[top:bottom, left:right].copy()
                point = batch[row].points[0]
                yield _Candidate(inside, float(scores[row, column]), stability, box, point)


def _batch_size(predictor: "MaskPredictor") -> int:
    """Return how many prompts to run together, so that their masks stay within memory."""
    height, width = predictor.picture_size
    side, other = predictor.preprocess.size
    pixels = predictor.masks_per_prompt * max(height * width, side * other)
    return min(max(_LARGEST_RUN // pixels, 1), _LARGEST_BATCH)


def _found(candidate: _Candidate, picture: tuple[int, int]) -> FoundMask:
    left, top, right, bottom = candidate.box
    mask = np.zeros(picture, np.bool_)
    mask[top:bottom, left:right] = candidate.inside
    return FoundMask(
        mask=mask,
        score=candidate.score,
        stability=candidate.stability,
        area=int(np.count_nonzero(candidate.inside)),
        box=candidate.box,
        point=candidate.point,
    )
