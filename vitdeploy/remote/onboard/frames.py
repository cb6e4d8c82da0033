"""Messages between both sides: a line of JSON, then the bytes of the arrays it announces.

Both sides use this module; what messages mean is `server`'s and `session`'s matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

ARRAYS = "arrays"
"""Key of a message under which its arrays are announced: [name, dtype, shape] each."""


def write_frame(
    stream: IO[bytes], message: Mapping[str, Any], arrays: Mapping[str, Any] | None = None
) -> None:
    """Write a message and its arrays, and flush.

    Args:
        stream: of bytes.
        message: JSON with no key `arrays`.
        arrays: numpy arrays by name.
    """
    given = arrays or {}
    announced = [[name, str(value.dtype), list(value.shape)] for name, value in given.items()]
    stream.write(json.dumps({**message, ARRAYS: announced}).encode("utf-8") + b"\n")
    for value in given.values():
        stream.write(value.tobytes())
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the next message and its arrays by name; None where the other side is gone.

    Raises:
        ValueError: what arrived is no message.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError(f"not a message: {line[:80]!r}")
    arrays: dict[str, Any] = {}
    for name, dtype, shape in message.pop(ARRAYS, []):
        array = _read_array(stream, dtype, shape)
        if array is None:
            return None
        arrays[name] = array
    return message, arrays


def _read_array(stream: IO[bytes], dtype: str, shape: list[int]) -> Any:
    import numpy as np

    array = np.empty(shape, dtype)
    content = stream.read(array.nbytes)
    if len(content) < array.nbytes:
        return None
    return np.frombuffer(content, dtype).reshape(shape)
