"""Golden tensors come back bit for bit, and nothing but float32 arrays is read."""

import numpy as np
import pytest

from vitdeploy.errors import DataError
from vitdeploy.golden import read_golden, write_golden

PIXELS = np.linspace(-1, 1, 2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
LOGITS = np.arange(20, dtype=np.float32).reshape(2, 10)


def test_arrays_come_back_bit_for_bit_under_their_names(tmp_path):
    path = write_golden(
        tmp_path, "image_encoder", {"pixel_values": PIXELS}, {"logits": LOGITS, "file": LOGITS}
    )
    assert path == tmp_path / "golden" / "image_encoder.npz"
    golden = read_golden(tmp_path, "image_encoder")
    np.testing.assert_array_equal(golden.inputs["pixel_values"], PIXELS)
    np.testing.assert_array_equal(golden.outputs["logits"], LOGITS)
    assert list(golden.outputs) == ["logits", "file"]
    assert golden.inputs["pixel_values"].dtype == np.float32


def test_equal_arrays_give_equal_bytes(tmp_path):
    paths = [write_golden(tmp_path / name, "model", {"x": PIXELS}, {"y": LOGITS}) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_other_types_and_values_that_compare_with_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match="'x' of part 'model' is float64; golden tensors are"):
        write_golden(tmp_path, "model", {"x": PIXELS.astype(np.float64)}, {})
    with pytest.raises(DataError, match="'y' of part 'model' holds NaN or infinity"):
        write_golden(tmp_path, "model", {"x": PIXELS}, {"y": LOGITS + np.inf})
    with pytest.raises(ValueError, match="relative POSIX path"):
        write_golden(tmp_path, "../model", {"x": PIXELS}, {"y": LOGITS})
    assert not list(tmp_path.rglob("*.npz"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"part 'model'.*model\.npz' is missing"):
        read_golden(tmp_path, "model")


def test_damaged_pickled_and_foreign_archives_are_refused(tmp_path):
    path = write_golden(tmp_path, "model", {"x": PIXELS}, {"y": LOGITS})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="Cannot read the golden tensors"):
        read_golden(tmp_path, "model")
    np.savez(path, **{"inputs/x": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(DataError, match="allow_pickle"):
        read_golden(tmp_path, "model")
    np.savez(path, stray=LOGITS)
    with pytest.raises(DataError, match="stray"):
        read_golden(tmp_path, "model")
    np.savez(path, **{"inputs/x": PIXELS.astype(np.float64)})
    with pytest.raises(DataError, match="float64, not float32"):
        read_golden(tmp_path, "model")
    path.write_bytes(b"")
    with pytest.raises(DataError, match="Cannot read"):
        read_golden(tmp_path, "model")
