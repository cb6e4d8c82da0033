"""How close two masks are: mask IoU and boundary IoU.

What prompts a model got lives in `prompts`, how close two models' masks are in `mask_fidelity`.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import DataError

Mask: TypeAlias = NDArray[np.bool_]

BOUNDARY_SHARE = 0.02
"""Width of the boundary as a share of the picture's diagonal, as in arXiv 2103.16562."""


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
