"""Raw little-endian tensors without numpy: sizes, numbers from bytes, bytes from numbers."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from .failure import MEASUREMENT, Failure

# numpy's names and struct's letters.
DTYPE_LETTERS = {
    "float32": "f",
    "float16": "e",
    "float64": "d",
    "int32": "i",
    "int64": "q",
    "int8": "b",
    "uint8": "B",
    "bool": "?",
}
# TensorRT's names of the types that an engine's inputs and outputs can have here.
DTYPES_BY_TENSORRT = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def size_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return how many bytes a tensor takes."""
    return math.prod(shape) * struct.calcsize("<" + _letter(dtype))


def values_from_bytes(data: bytes, dtype: str) -> tuple[float, ...]:
    """Return the numbers in `data`, flat.

    Raises:
        Failure: `dtype` is not known, or the bytes are no whole number of elements.
    """
    letter = _letter(dtype)
    count, rest = divmod(len(data), struct.calcsize("<" + letter))
    if rest:
        raise Failure(f"{len(data)} bytes are no whole number of {dtype} values", MEASUREMENT)
    return struct.unpack(f"<{count}{letter}", data)


def converted(data: bytes, source: str, wanted: str) -> bytes:
    """Return the numbers of `data` in another dtype, for an engine that narrowed an input.

    Raises:
        Failure: a value does not fit.
    """
    if source == wanted:
        return data
    values = values_from_bytes(data, source)
    is_integer = wanted.startswith(("int", "uint"))
    numbers = [int(value) for value in values] if is_integer else list(values)
    try:
        return struct.pack(f"<{len(numbers)}{_letter(wanted)}", *numbers)
    except (struct.error, OverflowError) as error:
        raise Failure(
            f"golden values of {source} do not fit into {wanted}, which the engine takes: {error}. "
            "Export again for this version of TensorRT.",
            MEASUREMENT,
        ) from error


def repeated(data: bytes, count_bytes: int) -> bytes:
    """Return `data` over and over until there are `count_bytes` bytes."""
    return (data * (count_bytes // max(1, len(data)) + 1))[:count_bytes]


def _letter(dtype: str) -> str:
    if dtype not in DTYPE_LETTERS:
        raise Failure(
            f"a tensor is {dtype}; allowed are {', '.join(DTYPE_LETTERS)}. Export again.",
            MEASUREMENT,
        )
    return DTYPE_LETTERS[dtype]
