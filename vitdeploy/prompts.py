"""Prompts of a model that segments what is pointed at: points and boxes in, decoder feeds out.

A `Prompt` is in pixels of the picture; the feeds are in the model's frame, under the tensor names
of segment-anything's reference ONNX. Needs numpy alone, so that a client can do the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitdeploy.data import Preprocess
from vitdeploy.data.preprocess import fitted_size
from vitdeploy.errors import UsageError
from vitdeploy.masks import Mask, eroded

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""
Feeds: TypeAlias = dict[str, NDArray[np.float32]]

INSIDE, OUTSIDE = 1, 0
_TOP_LEFT, _BOTTOM_RIGHT, _PADDING = 2, 3, -1


@dataclass(frozen=True)
class Prompt:
    """What one mask is asked for with.

    Raises:
        UsageError: it is empty, or the box has no area.
    """

    points: tuple[tuple[float, float], ...] = ()
    """x and y in pixels of the picture."""
    labels: tuple[int, ...] = ()
    """`INSIDE` or `OUTSIDE` of each point."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom in pixels."""

    def __post_init__(self) -> None:
        if not self.points and self.box is None:
            raise UsageError("an empty prompt; give at least one point or a box.")
        if len(self.points) != len(self.labels) or not {*self.labels} <= {INSIDE, OUTSIDE}:
            raise UsageError(
                f"{len(self.points)} points have the labels {self.labels}; allowed: one label a "
                "point, 1 inside the object or 0 outside."
            )
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise UsageError(
                f"box {self.box} has no area; allowed: left, top, right, bottom in pixels with "
                "left < right and top < bottom."
            )


def point(x: float, y: float) -> Prompt:
    """Return the prompt of one point inside the object, in pixels."""
    return Prompt(((x, y),), (INSIDE,))


def prompt_from_arrays(
    points: ArrayLike | None, labels: ArrayLike | None, box: ArrayLike | None
) -> Prompt:
    """Return the prompt of `points` (N, 2) or (2,), `labels` (N,) and `box` (4,), see `Prompt`.

    Without `labels` all points are inside the object.

    Raises:
        UsageError: a shape is another, or `Prompt` refuses the values.
    """
    places = _rows(points, "points", "x and y of each")
    corners = _rows(box, "box", "left, top, right and bottom")
    if len(corners) > 1:
        raise UsageError(f"{len(corners)} boxes in one prompt; allowed: one. Ask for each alone.")
    kinds = [INSIDE] * len(places) if labels is None else np.asarray(labels).ravel().tolist()
    return Prompt(
        points=tuple((x, y) for x, y in places),
        labels=tuple(kinds),
        box=next(((left, top, right, bottom) for left, top, right, bottom in corners), None),
    )


def prompt_feeds(
    prompts: Sequence[Prompt], picture: Size, preprocess: Preprocess, mask_input: Size
) -> Feeds:
    """Return the feeds of the mask decoder for `prompts` on one picture, embeddings left out.

    `point_coords` (P, N, 2), `point_labels` (P, N), `mask_input` (1, 1, h, w) of zeros,
    `has_mask_input` (1,) and `orig_im_size` (2,), all float32. Prompts with fewer points than
    others are filled with padding points, as the model was trained with.

    Args:
        prompts: at least one, all on the same picture.
        picture: the picture's size.
        preprocess: of the image encoder.
        mask_input: size of a low-resolution mask.

    Raises:
        UsageError: a point or a box lies outside the picture.
    """
    for prompt in prompts:
        _require_inside(prompt, picture)
    rows = [_tokens(prompt) for prompt in prompts]
    length = max(len(labels) for _, labels in rows)
    coords = np.zeros((len(rows), length, 2), np.float32)
    labels = np.full((len(rows), length), _PADDING, np.float32)
    for index, (places, kinds) in enumerate(rows):
        coords[index, : len(kinds)] = np.asarray(places) * _scale(picture, preprocess)
        labels[index, : len(kinds)] = kinds
    coords[labels == _PADDING] = 0
    return {
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": np.zeros((1, 1, *mask_input), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.asarray(picture, np.float32),
    }


def best_masks(
    iou_predictions: NDArray[np.float32], point_labels: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return for each prompt which of its masks to show, (P,).

    As SAM was trained: the first for a box or several points, else the best of the others.

    Args:
        iou_predictions: (P, M) of the decoder.
        point_labels: (P, N) that it was fed with.
    """
    if iou_predictions.shape[1] == 1:
        return np.zeros(len(iou_predictions), np.int64)
    is_clear = (point_labels != _PADDING).sum(1) > 1
    return np.where(is_clear, 0, 1 + iou_predictions[:, 1:].argmax(1))


def grid_prompts(picture: Size, per_side: int) -> tuple[Prompt, ...]:
    """Return one point prompt for each cell of a grid over the picture, row by row.

    Raises:
        UsageError: `per_side` is below 1.
    """
    if per_side < 1:
        raise UsageError(f"a grid of {per_side} points a side; allowed: 1 and more (usual: 32).")
    centres = (np.arange(per_side) + 0.5) / per_side
    height, width = picture
    return tuple(point(float(x * width), float(y * height)) for y in centres for x in centres)


def object_prompts(mask: Mask) -> tuple[Prompt, Prompt]:
    """Return a point well inside the object and a box around it, for a known mask (H, W).

    Raises:
        UsageError: the mask is empty.
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise UsageError("an empty mask has no point inside; leave such objects out.")
    inner, deeper = mask, eroded(mask, 1)
    while deeper.any():
        inner, deeper = deeper, eroded(deeper, 1)
    y, x = np.argwhere(inner)[np.count_nonzero(inner) // 2]
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    left, top, right, bottom = (float(edge) for edge in box)
    return point(float(x), float(y)), Prompt(box=(left, top, right, bottom))


def _rows(values: ArrayLike | None, name: str, content: str) -> list[list[float]]:
    """Return `values` as rows of as many numbers as `content` needs; none for None."""
    if values is None:
        return []
    width = 2 if name == "points" else 4
    try:
        array = np.atleast_2d(np.asarray(values, np.float64))
        if array.size and array.shape[1:] != (width,):
            raise ValueError(f"shape {array.shape}")
    except (ValueError, TypeError) as e:
        raise UsageError(f"{name} {values!r}: not {content} in pixels of the picture.") from e
    rows: list[list[float]] = array.tolist() if array.size else []
    return rows


def _require_inside(prompt: Prompt, picture: Size) -> None:
    height, width = picture
    corners = () if prompt.box is None else (prompt.box[:2], prompt.box[2:])
    for kind, places in (("point", prompt.points), ("box corner", corners)):
        for x, y in places:
            if not (0 <= x <= width and 0 <= y <= height):
                raise UsageError(
                    f"{kind} ({x:g}, {y:g}) lies outside the picture of {width} x {height} pixels; "
                    f"allowed: x in 0..{width}, y in 0..{height}."
                )


def _tokens(prompt: Prompt) -> tuple[list[tuple[float, float]], list[int]]:
    """Return places and labels: the points, then the box's corners or one padding point."""
    places, labels = list(prompt.points), list(prompt.labels)
    if prompt.box is None:
        return [*places, (0.0, 0.0)], [*labels, _PADDING]
    left, top, right, bottom = prompt.box
    return [*places, (left, top), (right, bottom)], [*labels, _TOP_LEFT, _BOTTOM_RIGHT]


def _scale(picture: Size, preprocess: Preprocess) -> NDArray[np.float64]:
    """Return (2,): what x and y are multiplied by to come into the model's frame."""
    corner = preprocess.crop_mode == "corner"
    height, width = fitted_size(picture, preprocess.size) if corner else preprocess.size
    return np.array([width / picture[1], height / picture[0]])
