"""Preprocessing of a transformers model, read from its preprocessor_config.json.

Read as data: the classes it names (slow, fast, torchvision) differ in code, not in meaning.
"""

import math
from collections.abc import Mapping
from typing import Any

from vitdeploy.data import Preprocess
from vitdeploy.errors import ModelError

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# The numbers of PIL.Image.Resampling.
_INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_DEFAULT_SIZE = 224


def preprocess_from_config(
    config: Any,
    processor: Mapping[str, Any] | None,
    image_size: int | None,
) -> tuple[Preprocess, tuple[str, ...]]:
    """Return the preprocessing, at `image_size` pixels where given, and notes for the user.

    Raises:
        ModelError: sizes that are not square, or not understood.
    """
    if processor is None:
        native = getattr(config, "image_size", None) or _DEFAULT_SIZE
        size = image_size or _edge(native, "image_size of config.json")
        note = "no preprocessor_config.json: ImageNet mean and std, bicubic, are assumed"
        return Preprocess((size, size), _IMAGENET_MEAN, _IMAGENET_STD, "bicubic"), (note,)
    resized = processor.get("size", _DEFAULT_SIZE)
    shortest = resized.get("shortest_edge") if isinstance(resized, Mapping) else None
    if shortest is None and isinstance(resized, int) and processor.get("do_center_crop"):
        shortest = resized
    crops = bool(processor.get("do_center_crop"))
    edge = _edge(shortest or resized, "size of preprocessor_config.json")
    size = _edge(processor.get("crop_size", edge), "crop_size") if crops else edge
    share = float(processor.get("crop_pct") or 1.0) if not crops else _share(size, edge)
    normalises = processor.get("do_normalize", True)
    mean = processor.get("image_mean") or _IMAGENET_MEAN if normalises else (0.0, 0.0, 0.0)
    std = processor.get("image_std") or _IMAGENET_STD if normalises else (1.0, 1.0, 1.0)
    resample = processor.get("resample", 2)
    preprocess = Preprocess(
        size=(image_size or size, image_size or size),
        mean=_channels(mean, "image_mean"),
        std=_channels(std, "image_std"),
        interpolation=_interpolation(resample),
        crop_pct=share,
        crop_mode="center" if crops or shortest is not None else "squash",
    )
    return preprocess, ()


def config_from_preprocess(preprocess: Preprocess) -> dict[str, Any]:
    """Return a preprocessor_config.json that `preprocess_from_config` reads back as the same."""
    height, width = preprocess.size
    sides = {"height": height, "width": width}
    result: dict[str, Any] = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_resize": True,
        "resample": _INTERPOLATIONS.index(preprocess.interpolation),
    }
    if preprocess.crop_mode == "squash":
        return result | {"size": sides, "crop_pct": preprocess.crop_pct}
    edge = math.floor(height / preprocess.crop_pct)
    return result | {"size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": sides}


def _share(size: int, edge: int) -> float:
    """Return `size / edge`, nudged so that floor(size / share) gives `edge` back."""
    share = size / edge
    return share if math.floor(size / share) == edge else math.nextafter(share, 0)


def _edge(value: Any, what: str) -> int:
    """Return the side of a square size given as a number, a pair, or {height, width}."""
    if isinstance(value, Mapping):
        value = [value.get("height", value.get("shortest_edge")), value.get("width")]
        value = value[:1] if value[1] is None else value
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if not sides or any(not isinstance(v, int) or v < 1 for v in sides) or len(set(sides)) > 1:
        raise ModelError(
            f"{what} is {value!r}; only square inputs are supported: one number, or equal "
            "height and width in pixels. --image-size does not change this."
        )
    return int(sides[0])


def _interpolation(value: Any) -> str:
    if isinstance(value, int) and 0 <= value < len(_INTERPOLATIONS):
        return _INTERPOLATIONS[value]
    if isinstance(value, str) and value.lower() in _INTERPOLATIONS:
        return value.lower()
    raise ModelError(
        f"resample of preprocessor_config.json is {value!r}; allowed: 0 to 5, as in Pillow."
    )


def _channels(values: Any, what: str) -> tuple[float, float, float]:
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise ModelError(f"{what} of preprocessor_config.json is {values!r}; three numbers needed.")
    return float(values[0]), float(values[1]), float(values[2])
