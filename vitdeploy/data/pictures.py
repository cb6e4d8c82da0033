"""Rendered pictures for `--calib synthetic`: seeded, in pixel range, with structure, never noise.

They are drawn with numpy, one by one when they are read. A picture has a shaded background, a
few overlapping shapes with texture, and shadows: smooth areas, edges and several scales at
once, as photographs have, so that activation ranges are of the right order. They are a stopgap:
a report says `synthetic` wherever they were used. What is seen of each shape is known too, which
makes them scenes with masks for a model that segments.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float64]
"""(H, W) values; coordinates run over -1..1."""
Colour = NDArray[np.float64]
"""(3,) R, G, B in 0..1."""


@dataclass(frozen=True)
class Picture:
    """One picture, named by what it is drawn from."""

    seed: int
    index: int
    """The place in the set; each index is another picture."""
    height: int = 384
    width: int = 384
    """In pixels."""


def render(picture: Picture) -> Image.Image:
    """Return `picture` drawn in mode RGB, (height, width) pixels."""
    return render_with_masks(picture)[0]


def render_with_masks(picture: Picture) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Return `picture` as `render` does, and what is seen of each shape: (K, H, W), back to front.

    A pixel belongs to the frontmost shape that covers at least half of it, or to none.
    """
    rng = np.random.default_rng([picture.seed, picture.index])
    y, x = np.meshgrid(
        np.linspace(-1, 1, picture.height), np.linspace(-1, 1, picture.width), indexing="ij"
    )
    canvas = _background(rng, x, y)
    masks: list[NDArray[np.bool_]] = []
    for _ in range(int(rng.integers(3, 9))):
        canvas, cover = _add_shape(rng, canvas, x, y)
        masks = [*(mask & (cover < 0.5) for mask in masks), cover >= 0.5]
    # uneven light: brighter on one side, darker towards the corners
    light = 1 + 0.25 * _gradient(rng, x, y) - rng.uniform(0, 0.25) * (x**2 + y**2) / 2
    pixels = np.clip(canvas * light[..., None], 0, 1) * 255
    return Image.fromarray(np.round(pixels).astype(np.uint8), mode="RGB"), np.stack(masks)


def _background(rng: np.random.Generator, x: Plane, y: Plane) -> NDArray[np.float64]:
    """Return (H, W, 3): two colours that run into each other, and some texture."""
    mix = (_gradient(rng, x, y) + 1) / 2
    canvas = mix[..., None] * _colour(rng) + (1 - mix[..., None]) * _colour(rng)
    return np.asarray(canvas + 0.15 * rng.uniform(0, 1) * _texture(rng, x, y)[..., None])


def _add_shape(
    rng: np.random.Generator, canvas: NDArray[np.float64], x: Plane, y: Plane
) -> tuple[NDArray[np.float64], Plane]:
    """Return `canvas` with one more shape and its soft shadow, and how much the shape covers."""
    centre_x, centre_y = rng.uniform(-0.9, 0.9, 2)
    radius = rng.uniform(0.08, 0.7)
    angle = rng.uniform(0, np.pi)
    aspect = rng.uniform(0.4, 1.0)
    outline = _OUTLINES[int(rng.integers(len(_OUTLINES)))]

    def distance(shift: float) -> Plane:
        u, v = x - centre_x - shift, y - centre_y - shift
        along, across = _turn(u, v, angle)
        return outline(along / radius, across / (radius * aspect))

    edge = rng.uniform(30, 120)  # how sharp: from a little blurred to one pixel
    cover = _step((1 - distance(0.0)) * edge * radius)
    shadow = 0.5 * _step((1 - distance(0.05)) * 8)[..., None]
    fill = _colour(rng) + rng.uniform(0, 0.35) * _texture(rng, x, y)[..., None]
    fill = fill * (1 + 0.3 * _gradient(rng, x, y)[..., None])
    under = canvas * (1 - shadow) * (1 - cover[..., None])
    return np.asarray(under + np.clip(fill, 0, 1) * cover[..., None]), cover


def _ellipse(u: Plane, v: Plane) -> Plane:
    return np.asarray(np.sqrt(u**2 + v**2))


def _rectangle(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v))


def _triangle(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.maximum(v, -v / 2 + u * 0.866), -v / 2 - u * 0.866) * 1.5


def _flower(u: Plane, v: Plane) -> Plane:
    return np.asarray(np.sqrt(u**2 + v**2) / (0.75 + 0.25 * np.cos(5 * np.arctan2(v, u))))


def _ring(u: Plane, v: Plane) -> Plane:
    return np.asarray(0.5 + 2 * np.abs(np.sqrt(u**2 + v**2) - 0.75))


_OUTLINES: tuple[Callable[[Plane, Plane], Plane], ...] = (
    _ellipse,
    _rectangle,
    _triangle,
    _flower,
    _ring,
)
"""Each returns a distance that is 1 on the outline and smaller inside."""


def _texture(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Return one of stripes, checks, spots and wood-like waves, in -1..1."""
    along, across = _turn(x, y, rng.uniform(0, np.pi))
    frequency = 2 * np.pi * np.exp(rng.uniform(np.log(1.5), np.log(25)))
    phase = rng.uniform(0, 2 * np.pi)
    wave_along = np.sin(frequency * along + phase)
    wave_across = np.sin(frequency * across + phase)
    match int(rng.integers(4)):
        case 0:
            return np.asarray(wave_along)
        case 1:
            return np.asarray(np.tanh(4 * wave_along * wave_across))
        case 2:
            return np.asarray(2 * np.clip(wave_along * wave_across, 0, 1) ** 2 - 1)
        case _:
            return np.asarray(np.sin(frequency * along + 3 * np.sin(4 * across + phase)))


def _gradient(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Return a smooth plane in -1..1, running in one direction."""
    return np.asarray(_turn(x, y, rng.uniform(0, 2 * np.pi))[0] / np.sqrt(2))


def _colour(rng: np.random.Generator) -> Colour:
    """Return a colour: any brightness, mostly muted, as in photographs."""
    grey = rng.uniform(0.1, 0.95)
    return np.clip(grey + rng.normal(0, 0.18, 3), 0, 1)


def _turn(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def _step(value: Plane) -> Plane:
    """Return 0 below, 1 above, smooth in between (width about 1)."""
    return np.asarray(np.clip(value + 0.5, 0, 1))
