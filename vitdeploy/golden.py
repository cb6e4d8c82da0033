"""Golden inputs and outputs: what lets a bundle be checked on another machine by itself.

Which inputs are kept and how close is close enough are decided elsewhere.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import DataError
from vitdeploy.manifest import require_relative

Array = NDArray[np.float32]
_TYPES = {"inputs": ("float32", "int64", "uint8"), "outputs": ("float32",)}
"""int64 for token ids, uint8 for pictures."""


@dataclass(frozen=True)
class Golden:
    """What went into one part of the FP32 reference and what came out, by tensor name."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


def golden_path(part: str) -> str:
    """Return where the golden tensors of a part lie in a bundle: `golden/<part>.npz`."""
    return require_relative(f"golden/{part}.npz")


def write_golden(
    folder: Path, part: str, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
) -> Path:
    """Return the file `golden/<part>.npz` under `folder`, written; equal arrays, equal bytes.

    Raises:
        DataError: an array is not float32 (an input may be int64 or uint8), or holds NaN or
            infinity.
    """
    arrays: dict[str, Array] = {}
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        for name, array in tensors.items():
            if str(array.dtype) not in _TYPES[kind]:
                raise DataError(
                    f"Golden tensor '{name}' of part '{part}' is {array.dtype}; "
                    "golden tensors are float32, or int64 or uint8 that go in. Cast it where it is "
                    "made."
                )
            if not np.isfinite(array).all():
                raise DataError(
                    f"Golden tensor '{name}' of part '{part}' holds NaN or infinity, so nothing "
                    "can be compared with it. Check the checkpoint and the images."
                )
            arrays[f"{kind}/{name}"] = array
    path = folder / golden_path(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return path


def read_golden(folder: Path, part: str) -> Golden:
    """Return the golden tensors of a part of the bundle in `folder`.

    Raises:
        DataError: the file is missing, damaged, or holds arrays of other types.
    """
    path = folder / golden_path(part)
    tensors: dict[str, dict[str, Array]] = {"inputs": {}, "outputs": {}}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                kind, _, name = key.partition("/")
                array = archive[key]
                if str(array.dtype) not in _TYPES[kind]:
                    raise ValueError(f"'{key}' is {array.dtype}, not float32")
                tensors[kind][name] = array
    except FileNotFoundError as error:
        raise DataError(
            f"The bundle has no golden tensors for part '{part}': '{path}' is missing. "
            "Copy the bundle again, or name a reference with --against."
        ) from error
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"Cannot read the golden tensors '{path}': {error}. Copy the bundle again."
        ) from error
    return Golden(inputs=tensors["inputs"], outputs=tensors["outputs"])
