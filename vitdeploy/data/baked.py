"""Preprocessing that is part of a graph: which can be, and what such a graph is fed.

The graph passes themselves are in `graph.preprocessing` and in `targets.openvino`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.data.preprocess import Preprocess, prepare, resize_rows_first

PICTURES = "pictures"
"""The input of a graph with its preprocessing: (batch, height, width, 3) uint8, red first; any
height and width, which pictures of one batch share."""
BAKED_FILTERS = ("bilinear", "bicubic")


def unbakeable_reason(preprocess: Preprocess) -> str | None:
    """Return why this preprocessing cannot be put into a graph; None where it can."""
    if preprocess.interpolation not in BAKED_FILTERS:
        return f"its filter is {preprocess.interpolation}; {' and '.join(BAKED_FILTERS)} can be"
    if preprocess.crop_mode not in ("center", "squash"):
        return f"its crop mode is {preprocess.crop_mode}, which pads; center and squash can be"
    if preprocess.crop_pct > 1:
        return f"its crop_pct is {preprocess.crop_pct:g}, which pads; 1 and less can be"
    height, width = frame_size(preprocess)
    if preprocess.crop_mode == "center" and height != width:
        return "it crops to a rectangle; a square can be"
    return None


def frame_size(preprocess: Preprocess) -> tuple[int, int]:
    """Return (height, width) in pixels before cropping: the size itself, or the short edge's."""
    height, width = (math.floor(side / preprocess.crop_pct) for side in preprocess.size)
    return height, width


def prepared_as_baked(picture: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """Return (3, H, W) float32 of a picture (height, width, 3), in the order graphs resize in."""
    return prepare(resize_rows_first(Image.fromarray(picture), preprocess), preprocess)


def golden_pictures(pictures: Iterable[NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
    """Return pictures (height, width, 3) under the names that golden inputs have."""
    return {f"{PICTURES}.{index}": picture[None] for index, picture in enumerate(pictures)}


def picture_feeds(golden: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[np.uint8]]]:
    """Return the feeds of golden inputs that are pictures, one at a time; none where none are."""
    return [{PICTURES: array} for name, array in golden.items() if name.startswith(f"{PICTURES}.")]
