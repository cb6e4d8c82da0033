"""Tensors out of a TorchScript archive, as OpenAI published CLIP, without running any of it.

Such a file is a zip of code and of a pickle that names the module's classes. Here classes become
empty holders, the code is not opened, and the only function that the pickle may call is the one
below that views a stretch of a storage file.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from vitdeploy.errors import ModelError

_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
_DEEPEST = 64


class _Holder:
    """Stands for an object of a class in the archive's code; has its attributes and no methods."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"an object's state is a {type(state).__name__}")
        self.attributes = state


def is_torchscript(path: Path) -> bool:
    """Return whether the file at `path` is a zip with a module's code beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = {PurePosixPath(name) for name in archive.namelist()}
    tops = {name.parts[0] for name in names if len(name.parts) > 1}
    return any(
        {PurePosixPath(top, "data.pkl"), PurePosixPath(top, "constants.pkl")} <= names
        for top in tops
    )


def tensors_from_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of the archived module under its path, on the CPU.

    Raises:
        ModelError: the archive is damaged, or its pickle names anything but modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = next(n for n in archive.namelist() if PurePosixPath(n).name == "data.pkl")
            with archive.open(data) as stream:
                root = _Unpickler(stream, archive, str(PurePosixPath(data).parent)).load()
        tensors: dict[str, torch.Tensor] = {}
        _collect_(tensors, root, "", 0)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"checkpoint '{path}' was refused: it is a TorchScript archive whose tensors cannot be "
            f"read without running code ({error}). Load it where you trust it, and save its "
            "state_dict() with safetensors."
        ) from error
    except (
        *(OSError, KeyError, ValueError, EOFError, IndexError, TypeError, AttributeError),
        *(RuntimeError, StopIteration, zipfile.BadZipFile),
    ) as error:
        raise ModelError(
            f"cannot read checkpoint '{path}': it is a damaged TorchScript archive "
            f"({type(error).__name__}). Copy or download it again."
        ) from error
    return tensors


class _Unpickler(pickle.Unpickler):
    """Reads `data.pkl`; knows holders, tensors and lists, and refuses all else."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in the pickle stands for here; nothing is imported."""
        if module == "__torch__" or module.startswith("__torch__."):
            return _Holder
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("collections", "OrderedDict"): OrderedDict,
            **{("torch.jit._pickle", kind): list for kind in _LISTS},
        }
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if (module, name) in known:
            return known[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, reference: Any) -> torch.Tensor:
        """Return one storage as a flat tensor."""
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isalnum():
            raise pickle.UnpicklingError("it refers to something that is no storage")
        raw = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        if len(flat) < int(count):
            raise pickle.UnpicklingError(f"storage {key} is shorter than said")
        return flat


def _view(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    """Return a tensor over a storage; torch refuses what lies outside."""
    return storage.as_strided(size, stride, offset)


def _collect_(tensors: dict[str, torch.Tensor], value: Any, path: str, depth: int) -> None:
    """Add the tensors in a holder and in those it holds."""
    if depth > _DEEPEST:
        raise pickle.UnpicklingError("its modules lie too deep in one another")
    if isinstance(value, torch.Tensor):
        tensors[path] = value
    elif isinstance(value, _Holder):
        for name, inner in getattr(value, "attributes", {}).items():
            _collect_(tensors, inner, f"{path}.{name}" if path else str(name), depth + 1)
