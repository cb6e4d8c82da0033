"""The image sets that ship with the package, found in a checkout and in a wheel.

`calib_data/make.py` makes them; their sources and licences are in the README beside each.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.data.folder import scan_images
from vitdeploy.data.image_set import ImageSet, Origin
from vitdeploy.errors import DataError

PackagedName = Literal["digits", "photos", "scenes"]
Split = Literal["calib", "eval"]

_PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel the data lies inside the package, in a checkout beside it.
_HOMES = (_PACKAGE / "calib_data", _PACKAGE.parent / "calib_data")
_DIGITS = tuple("0123456789")
_NAMES: tuple[PackagedName, ...] = ("digits", "photos", "scenes")


def packaged_path(relative: str) -> Path:
    """Return where `relative`, for instance `digits/eval`, lies in the packaged `calib_data`.

    Raises:
        DataError: this installation has no such file or folder.
    """
    for home in _HOMES:
        path = home / relative
        if path.exists():
            return path
    raise DataError(
        f"packaged data '{relative}' is not part of this installation. "
        "Install vitdeploy again, or give images of your own with --calib and --eval."
    )


def packaged_set(name: PackagedName, split: Split | None = None) -> ImageSet:
    """Return a packaged image set: its `calib` part, its `eval` part, or both (None).

    `digits` is labelled and has origin `packaged`: it is what `vit-digits` was made for.
    `photos` is unlabelled and has origin `generic`: it stands in for a user's own images.
    `scenes` is rendered, with known masks (`scene_masks`), and what `sam-scenes` was made for.

    Raises:
        DataError: the name or split is unknown, or this installation lacks the data.
    """
    if name not in _NAMES:
        raise DataError(f"no packaged image set '{name}'; there are: {', '.join(_NAMES)}.")
    if split not in ("calib", "eval", None):
        raise DataError(f"packaged set '{name}' has no split '{split}'; there are: calib, eval.")
    if split is None:
        calib, held_out = packaged_set(name, "calib"), packaged_set(name, "eval")
        labels = None if calib.labels is None else calib.labels + (held_out.labels or ())
        return replace(calib, name=name, paths=calib.paths + held_out.paths, labels=labels)
    folder = packaged_path(f"{name}/{split}")
    found = scan_images(folder, _DIGITS if name == "digits" else ())
    origin: Origin = "generic" if name == "photos" else "packaged"
    return replace(found, name=f"{name}/{split}", origin=origin)


def scene_masks(picture: Path) -> NDArray[np.bool_]:
    """Return (K, height, width): what is seen of each object of a picture of `scenes`.

    Raises:
        DataError: it has no masks beside it.
    """
    split = picture.parent
    file = split.parent / "masks" / split.name / f"{picture.stem}.png"
    try:
        with Image.open(file) as opened:
            numbers = np.asarray(opened)
    except OSError as e:
        raise DataError(
            f"no masks for '{picture.name}': '{file.name}' in masks/{split.name} is missing or "
            "damaged. Only pictures of the packaged set `scenes` have known masks."
        ) from e
    return np.stack([numbers == number for number in range(1, int(numbers.max()) + 1)])
