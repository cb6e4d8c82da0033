"""Raw tensors without numpy, against numpy."""

import numpy as np
import pytest

from vitdeploy.device.onboard.failure import Failure
from vitdeploy.device.onboard.tensors import (
    DTYPE_LETTERS,
    converted,
    repeated,
    size_bytes,
    values_from_bytes,
)


@pytest.mark.parametrize("dtype", sorted(DTYPE_LETTERS))
def test_numbers_are_those_numpy_wrote(dtype: str):
    array = np.array([0, 1, 3, 100]).astype(dtype)
    assert values_from_bytes(array.tobytes(), dtype) == tuple(array.tolist())
    assert size_bytes(dtype, (2, 2)) == array.nbytes


def test_int64_becomes_int32_where_it_fits():
    wide = np.array([-1, 2**31 - 1])
    assert converted(wide.tobytes(), "int64", "int32") == wide.astype(np.int32).tobytes()
    assert converted(b"same", "int32", "int32") == b"same"
    with pytest.raises(Failure, match="do not fit into int32"):
        converted(np.array([2**31]).tobytes(), "int64", "int32")


def test_float32_becomes_float16():
    array = np.array([0.1, 65504.0], np.float32)
    assert converted(array.tobytes(), "float32", "float16") == array.astype("f2").tobytes()
    with pytest.raises(Failure, match="do not fit into float16"):
        converted(np.array([1e6], np.float32).tobytes(), "float32", "float16")


def test_values_are_repeated_to_the_size():
    assert repeated(b"abc", 7) == b"abcabca"
    assert repeated(b"abc", 2) == b"ab"


def test_what_is_no_tensor_is_refused():
    with pytest.raises(Failure, match="no whole number"):
        values_from_bytes(b"abc", "float32")
    with pytest.raises(Failure, match="bfloat16; allowed are"):
        size_bytes("bfloat16", (1,))
