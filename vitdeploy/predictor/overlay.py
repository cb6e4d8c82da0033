"""A picture with masks, prompt points and a box drawn on it."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vitdeploy.masks import Mask, boundary
from vitdeploy.prompts import INSIDE, Prompt

Colour = tuple[int, int, int]
"""R, G and B in 0..255."""

_OPACITY = 0.45
_GOLDEN = 0.618034
"""Of a turn; steps of this size spread hues evenly, however many there are."""
_INSIDE_COLOUR, _OUTSIDE_COLOUR, _WHITE = (40, 200, 60), (220, 40, 40), (255, 255, 255)


def overlay(image: Image.Image, masks: Sequence[Mask], prompt: Prompt | None = None) -> Image.Image:
    """Return `image` (RGB) with each mask in a colour of its own, small ones in front.

    Args:
        image: the picture.
        masks: (height, width) of the picture each.
        prompt: its points are drawn green (inside) or red (outside), its box white.
    """
    pixels = np.asarray(image).astype(np.float32)
    width = max(1, round(max(image.size) / 400))
    order = sorted(range(len(masks)), key=lambda index: -int(np.count_nonzero(masks[index])))
    for index in order:
        colour = np.asarray(mask_colour(index), np.float32)
        mask, edge = masks[index], boundary(masks[index], width)
        pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * colour
        pixels[edge] = colour
    drawn = Image.fromarray(np.round(pixels).astype(np.uint8))
    if prompt is not None:
        _draw_prompt_(drawn, prompt, width)
    return drawn


def mask_colour(index: int) -> Colour:
    """Return a bright colour; neighbours in order differ clearly."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_prompt_(image: Image.Image, prompt: Prompt, width: int) -> None:
    canvas = ImageDraw.Draw(image)
    if prompt.box is not None:
        canvas.rectangle(prompt.box, outline=_WHITE, width=width)
    radius = 2.5 * width
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        colour = _INSIDE_COLOUR if label == INSIDE else _OUTSIDE_COLOUR
        disc = (x - radius, y - radius, x + radius, y + radius)
        canvas.ellipse(disc, fill=colour, outline=_WHITE, width=max(1, width // 2))
