"""Room on the disk and errors that mean it is full; `tests/test_bundle.py` covers the rest."""

import shutil
from collections import namedtuple

import pytest

from vitdeploy.errors import DataError
from vitdeploy.output import raise_if_full, require_space

Usage = namedtuple("Usage", "total used free")


def test_space_is_asked_of_the_disk_that_will_hold_the_path(tmp_path):
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(DataError, match=r"disk full: .*yet' needs about 10{12} MB and .* are free"):
        require_space(tmp_path / "not" / "yet", 10**18)


def test_a_native_error_on_a_full_disk_is_taken_for_it(tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail at inline_container.cc] unexpected pos")
    raise_if_full(error, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 4096))
    with pytest.raises(DataError, match="disk full") as caught:
        raise_if_full(error, tmp_path)
    assert caught.value.__cause__ is error
    raise_if_full(KeyboardInterrupt(), tmp_path)
    raise_if_full(ValueError("a bug"), tmp_path)
