"""How close two segmentations are: mask IoU and boundary IoU, of pairs of masks or of two models.

Masks are logits (inside above 0) or bool. What prompts a model got lives in `prompts`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import DataError

Mask: TypeAlias = NDArray[np.bool_]
Pair: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""The reference's mask and the other one, (H, W) each: bool, or logits."""

BOUNDARY_SHARE = 0.02
"""Width of the boundary as a share of the picture's diagonal, as in arXiv 2103.16562."""


@dataclass(frozen=True)
class MaskScores:
    """Agreement of many masks with their references; all values 0..1, 1 is the same mask."""

    iou_mean: float
    iou_min: float
    boundary_iou_mean: float
    boundary_iou_min: float
    count: int
    """Pairs of masks."""

    def named(self) -> dict[str, float]:
        """Return the values under their names in reports."""
        return {
            "mask_iou_mean": self.iou_mean,
            "mask_iou_min": self.iou_min,
            "boundary_iou_mean": self.boundary_iou_mean,
            "boundary_iou_min": self.boundary_iou_min,
        }


def score_masks(pairs: Iterable[Pair]) -> MaskScores:
    """Return mean and worst mask IoU and boundary IoU; masks may differ in size from pair to pair.

    Raises:
        DataError: there is no pair, or the masks of one differ in shape.
    """
    rows = [
        (mask_iou(a, b), boundary_iou(a, b))
        for a, b in ((_inside(reference), _inside(value)) for reference, value in pairs)
    ]
    if not rows:
        raise DataError("no masks to compare; give at least one prompt and one picture.")
    whole, edges = np.asarray(rows).T
    return MaskScores(
        iou_mean=float(whole.mean()),
        iou_min=float(whole.min()),
        boundary_iou_mean=float(edges.mean()),
        boundary_iou_min=float(edges.min()),
        count=len(rows),
    )


def mask_iou(reference: Mask, value: Mask) -> float:
    """Return intersection over union of two bool masks (H, W); 1 where both are empty.

    Raises:
        DataError: they differ in shape.
    """
    if reference.shape != value.shape:
        raise DataError(
            f"masks of {reference.shape} and {value.shape} pixels cannot be compared; resize the "
            "logits to the same picture first."
        )
    union = int(np.count_nonzero(reference | value))
    return float(np.count_nonzero(reference & value) / union) if union else 1.0


def boundary_iou(reference: Mask, value: Mask) -> float:
    """Return the IoU of the two masks' inner boundaries (arXiv 2103.16562, equation 4).

    Raises:
        DataError: they differ in shape.
    """
    diagonal = float(np.hypot(*reference.shape))
    width = max(1, round(BOUNDARY_SHARE * diagonal))
    return mask_iou(boundary(reference, width), boundary(value, width))


def boundary(mask: Mask, width: int) -> Mask:
    """Return the pixels of `mask` (H, W) at most `width` pixels from its outside.

    Distance counts diagonal steps as one; beyond the picture is outside.
    """
    return mask & ~eroded(mask, width)


def eroded(mask: Mask, width: int) -> Mask:
    """Return the pixels of `mask` (H, W) more than `width` pixels from its outside."""
    span = 2 * width + 1
    inner = np.pad(mask, width)
    for axis in (0, 1):
        # a pixel stays where all of the `span` pixels around it are inside
        sums = np.cumsum(np.insert(inner.astype(np.int64), 0, 0, axis=axis), axis=axis)
        last = sums.shape[axis]
        behind = np.take(sums, np.arange(span, last), axis=axis)
        inner = behind - np.take(sums, np.arange(last - span), axis=axis) == span
    return np.asarray(inner)


def _inside(mask: NDArray[Any]) -> Mask:
    return np.asarray(mask if mask.dtype == np.bool_ else mask > 0)
