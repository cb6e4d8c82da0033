"""The calls into libcudart: that the real library has them, and how errors are told."""

import ast
import ctypes
import re
import sys
from pathlib import Path

import pytest

from vitdeploy.device.onboard import cuda as cuda_module
from vitdeploy.device.onboard.cuda import Cuda, load_cuda
from vitdeploy.device.onboard.failure import Failure


def calls() -> set[str]:
    tree = ast.parse(Path(cuda_module.__file__).read_text())
    names = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and re.fullmatch(r"cuda[A-Z]\w+", str(node.value))
    }
    return names | {"cudaRuntimeGetVersion", "cudaDriverGetVersion", "cudaGetErrorString"}


def real_library() -> ctypes.CDLL:
    for folder in sys.path:
        for path in sorted(Path(folder or ".").glob("nvidia/*/lib/libcudart.so*")):
            return ctypes.CDLL(str(path))
    pytest.skip("no libcudart in this environment")


def test_the_real_library_has_every_call():
    library = real_library()
    assert len(calls()) > 20
    assert [name for name in calls() if not hasattr(library, name)] == []


class Failing:
    """Every call fails with error 2."""

    class _Describe:
        restype: object = None

        def __call__(self, code: int) -> bytes:
            return b"out of memory"

    cudaGetErrorString = _Describe()

    def __getattr__(self, name: str):
        return lambda *arguments: 2


def test_an_error_is_told_in_cudas_words():
    with pytest.raises(
        Failure, match=r"cudaMalloc failed: out of memory \(CUDA error 2\)"
    ) as caught:
        Cuda(Failing()).call("cudaMalloc")
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("library", "words"), [(Failing(), "out of memory"), (None, "libcudart is not found")]
)
def test_no_gpu_says_why(monkeypatch: pytest.MonkeyPatch, library: object, words: str):
    def load(name: str) -> object:
        if library is None:
            raise OSError(name)
        return library

    monkeypatch.setattr(cuda_module.ctypes, "CDLL", load)
    with pytest.raises(Failure, match=words) as caught:
        load_cuda()
    assert caught.value.exit_code == 6
