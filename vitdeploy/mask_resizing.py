"""Low-resolution masks brought to the picture's size, as the mask decoder's graph does it.

For engines that cannot give outputs whose size follows from an input's values (TensorRT), and in
numpy alone, so that a client can do the same.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import Preprocess
from vitdeploy.data.preprocess import fitted_size

Logits: TypeAlias = NDArray[np.float32]
"""(..., height, width) float32; inside above 0."""


def masks_at_picture(
    low_res_masks: Logits, picture: tuple[int, int], preprocess: Preprocess
) -> Logits:
    """Return masks (P, M, height, width) float32 at the size of `picture`, padding cut away.

    Args:
        low_res_masks: (P, M, h, w) of the decoder, over the whole square the encoder reads.
        picture: height and width in pixels.
        preprocess: of the image encoder.
    """
    masks = low_res_masks
    if preprocess.crop_mode == "corner":
        height, width = fitted_size(picture, preprocess.size)
        masks = resized(masks, preprocess.size)[..., :height, :width]
    return resized(masks, picture)


def resized(masks: Logits, size: tuple[int, int]) -> Logits:
    """Return `masks` resized bilinearly to (height, width), pixel centres kept, no smoothing."""
    for axis, length in ((-2, size[0]), (-1, size[1])):
        masks = _resized_along(masks, axis, length)
    return masks


def _resized_along(values: Logits, axis: int, length: int) -> Logits:
    old = values.shape[axis]
    places = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
    first = places.astype(np.int64)
    second = np.minimum(first + 1, old - 1)
    share: NDArray[Any] = (places - first).astype(np.float32)
    if axis == -2:
        share = share[:, None]
    left, right = (np.take(values, index, axis=axis) for index in (first, second))
    return np.asarray(left + (right - left) * share, np.float32)
