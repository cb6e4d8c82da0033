"""From a picture to the array a model reads: `Preprocess` and `prepare`.

The same arithmetic as timm's evaluation transform, in Pillow and numpy, so that a bundle
can be run where there is no torch. Which pictures are read lives in `data`; which
preprocessing a model wants is known by its family.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.errors import DataError, suggest

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
INTERPOLATIONS = tuple(_RESAMPLING)
CROP_MODES = ("center", "squash", "border", "corner")


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the input of a model; equal to timm's evaluation transform.

    Raises:
        DataError: a field has a value that no transform can carry out.
    """

    size: tuple[int, int]
    """(height, width) in pixels of the array the model reads."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel (R, G, B), subtracted from pixels in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Per channel (R, G, B), divides what is left."""
    interpolation: str = "bicubic"
    """One of `INTERPOLATIONS`."""
    crop_pct: float = 1.0
    """`size` over the size resized to; above 1 the picture gets a black border."""
    crop_mode: str = "center"
    """`center`: shortest edge, then crop. `squash`: both edges, aspect ratio lost.
    `border`: longest edge, then pad with the mean.
    `corner`: longest edge, then pad at the right and bottom with what becomes 0 (Segment Anything;
    no mode of timm's). `crop_pct` is 1 there."""

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise _bad("size", self.size, "(height, width), both at least 1 pixel")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise _bad(name, values, "three finite numbers, one per channel")
        if min(self.std) <= 0:
            raise _bad("std", self.std, "three numbers above 0, for pixels in 0..1")
        if self.interpolation not in _RESAMPLING:
            raise _bad("interpolation", self.interpolation, ", ".join(INTERPOLATIONS))
        if self.crop_mode not in CROP_MODES:
            raise _bad("crop_mode", self.crop_mode, ", ".join(CROP_MODES))
        if not 0 < self.crop_pct <= 2:
            raise _bad("crop_pct", self.crop_pct, "a share above 0 and at most 2 (0.9, not 90)")
        if self.crop_mode == "corner" and self.crop_pct != 1:
            raise _bad("crop_pct", self.crop_pct, "1 where crop_mode is corner")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them; `from_dict` reads them back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocess":
        """Return the preprocessing that `to_dict` wrote.

        Raises:
            DataError: a field is missing, unknown, of the wrong type or out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in names:
                raise DataError(
                    f"preprocess: unknown field '{name}'.{suggest(name, names)} "
                    f"Allowed: {', '.join(names)}."
                )
        missing = [name for name in names if name not in fields]
        if missing:
            raise DataError(
                f"preprocess: {', '.join(missing)} missing; needed: {', '.join(names)}."
            )
        return cls(
            size=(_numbers(fields, "size", 2, int)[0], _numbers(fields, "size", 2, int)[1]),
            mean=_channels(fields, "mean"),
            std=_channels(fields, "std"),
            interpolation=str(fields["interpolation"]),
            crop_pct=_numbers({"crop_pct": [fields["crop_pct"]]}, "crop_pct", 1, float)[0],
            crop_mode=str(fields["crop_mode"]),
        )


def prepare(image: Image.Image, preprocess: Preprocess) -> NDArray[np.float32]:
    """Return `image` as the model reads it: (3, H, W) float32, normalised.

    Grey, palette, CMYK and transparent pictures become RGB by Pillow's rule (transparency is
    dropped), as timm and torchvision do. The EXIF orientation is not applied, for the same
    reason: the accuracy a model is known for was measured without it.

    Raises:
        DataError: the picture has more than 8 bits per channel; Pillow would clip it.
    """
    image = resize(to_rgb(image), preprocess)
    # (value / 255 - mean) / std in float32, in this order: bit for bit what torchvision does.
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    mean = np.asarray(preprocess.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(preprocess.std, dtype=np.float32)[:, None, None]
    pixels = (pixels - mean) / std
    if preprocess.crop_mode == "corner":
        height, width = preprocess.size
        missing = ((0, 0), (0, height - pixels.shape[1]), (0, width - pixels.shape[2]))
        pixels = np.pad(pixels, missing)
    return np.ascontiguousarray(pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` in mode RGB, 8 bits per channel; an RGB image is returned as it is.

    Raises:
        DataError: the picture has more than 8 bits per channel; Pillow would clip it.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        raise DataError(
            f"cannot read a picture with more than 8 bits per channel (mode {image.mode}): "
            "values above 255 would be clipped to white. Scale it to 8 bits first."
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def resize(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Return the RGB `image` resized and cropped to `preprocess.size`, not yet normalised.

    With `corner` it may be smaller: padding comes after normalising.
    """
    target = scaled_size((image.height, image.width), preprocess)
    if target != (image.height, image.width):
        image = image.resize((target[1], target[0]), _RESAMPLING[preprocess.interpolation])
    if preprocess.crop_mode == "corner":
        return image
    red, green, blue = (
        (round(255 * value) for value in preprocess.mean)
        if preprocess.crop_mode == "border"
        else (0, 0, 0)
    )
    return _crop_center(image, preprocess.size, (red, green, blue))


def resize_rows_first(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Return the RGB `image` at `scaled_size`, each row resized before any column.

    Before 12.3 Pillow always did so; since then it resizes the columns of tall pictures first,
    which rounds differently by up to 3 levels of 255.
    """
    rows, columns = scaled_size((image.height, image.width), preprocess)
    method = _RESAMPLING[preprocess.interpolation]
    return image.resize((columns, image.height), method).resize((columns, rows), method)


def scaled_size(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """Return (height, width) that a picture of `size` is resized to, before it is cropped."""
    height, width = preprocess.size
    if preprocess.crop_mode == "corner":
        return fitted_size(size, preprocess.size)
    scaled_height = math.floor(height / preprocess.crop_pct)
    scaled_width = math.floor(width / preprocess.crop_pct)
    if preprocess.crop_mode == "squash":
        target = (scaled_height, scaled_width)
    elif preprocess.crop_mode == "border":
        ratio = max(size[0] / scaled_height, size[1] / scaled_width)
        target = (round(size[0] / ratio), round(size[1] / ratio))
    elif scaled_height == scaled_width:
        # torchvision rounds the long edge down, where timm's own resize below rounds to nearest
        target = (
            int(scaled_height * size[0] / min(size)),
            int(scaled_height * size[1] / min(size)),
        )
    else:
        ratio = min(size[0] / scaled_height, size[1] / scaled_width)
        target = (round(size[0] / ratio), round(size[1] / ratio))
    return max(target[0], 1), max(target[1], 1)


def fitted_size(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a picture of `size` resized to fit into `frame`, all in pixels.

    Rounds as Segment Anything's ResizeLongestSide does.
    """
    scale = min(frame[0] / size[0], frame[1] / size[1])
    rows, columns = (int(length * scale + 0.5) for length in size)
    return max(rows, 1), max(columns, 1)


def _crop_center(
    image: Image.Image, size: tuple[int, int], fill: tuple[int, int, int]
) -> Image.Image:
    """Return the middle (height, width) of `image`; what it lacks is `fill`."""
    if (image.height, image.width) == size:
        return image
    top, left = _offset(image.height, size[0]), _offset(image.width, size[1])
    if image.height >= size[0] and image.width >= size[1]:
        return image.crop((left, top, left + size[1], top + size[0]))
    canvas = Image.new("RGB", (size[1], size[0]), fill)
    canvas.paste(image, (-left, -top))
    return canvas


def _offset(length: int, wanted: int) -> int:
    """Return where a crop of `wanted` pixels starts; negative where padding comes first."""
    if wanted > length:
        return -((wanted - length) // 2)
    return round((length - wanted) / 2)


def _channels(fields: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    red, green, blue = _numbers(fields, name, 3, float)
    return red, green, blue


def _numbers(fields: Mapping[str, Any], name: str, count: int, kind: type) -> list[Any]:
    """Return `count` numbers of field `name`, as `kind`; an int where a float is wanted is fine."""
    value = fields[name]
    allowed = int if kind is int else (int, float)
    if (
        not isinstance(value, (list, tuple))
        or len(value) != count
        or any(isinstance(item, bool) or not isinstance(item, allowed) for item in value)
    ):
        raise _bad(name, value, f"{count} {'integers' if kind is int else 'numbers'}")
    return [kind(item) for item in value]


def _bad(name: str, value: object, allowed: str) -> DataError:
    return DataError(f"preprocess: {name} is {value!r}; allowed: {allowed}.")
