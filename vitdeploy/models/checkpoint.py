"""Reading weights without running code from the file, and loading them without leftovers.

What a checkpoint means to an architecture (key names, resampling) is told by its caller.
"""

import argparse
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitdeploy.errors import ModelError
from vitdeploy.models.torchscript_archive import is_torchscript, tensors_from_torchscript

StateDict = dict[str, torch.Tensor]

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
_PREFIXES = ("_orig_mod.", "module.", "model.")
_SHOWN = 10


def find_weights(folder: Path) -> Path:
    """Return the weight file of a model folder in timm's layout.

    Raises:
        ModelError: there is none, or more than one with no usual name.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(
        p for ext in ("*.safetensors", "*.pth", "*.pt", "*.bin") for p in folder.glob(ext)
    )
    if len(found) == 1:
        return found[0]
    seen = ", ".join(p.name for p in found) or "none"
    raise ModelError(
        f"which file in '{folder}' holds the weights? Found: {seen}. Name it model.safetensors, "
        "or give it with --checkpoint FILE."
    )


def read_state_dict(path: Path) -> StateDict:
    """Return the tensors of a checkpoint by name, on the CPU, wrappers and prefixes removed.

    Reads .safetensors, a TorchScript archive (its tensors alone), or a torch file with
    `weights_only=True`: a plain state dict, or one under `state_dict`, `model`, `module` or their
    `_ema` forms (which are preferred, as timm does).

    Raises:
        ModelError: missing, a folder, truncated, not a checkpoint, or it holds code.
    """
    if path.is_dir():
        raise ModelError(
            f"checkpoint '{path}' is a folder; --checkpoint takes a file. To load a model folder, "
            "give it as MODEL."
        )
    if not path.is_file():
        raise ModelError(
            f"checkpoint '{path}' does not exist. Check the path given to --checkpoint."
        )
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    elif is_torchscript(path):
        content = tensors_from_torchscript(path)
    else:
        content = _read_torch(path)
    weights = _unwrap(content)
    others = [key for key, value in weights.items() if not isinstance(value, torch.Tensor)]
    if not weights or others:
        seen = f"no tensors under {shorten(map(str, others))}" if others else "no named tensors"
        raise ModelError(
            f"checkpoint '{path}' is not a state dict: {seen}. Allowed: names to tensors, plain or "
            "under 'state_dict' or 'model'."
        )
    return _without_prefixes(weights)


def load_strictly_(
    model: nn.Module, weights: Mapping[str, torch.Tensor], what: str, *, assign: bool = False
) -> None:
    """Copy `weights` into `model`; every key and shape must match and every value be finite.

    With `assign` the model's parameters become these tensors, which need no memory of their own
    where they are mapped from a file.

    Raises:
        ModelError: missing or unexpected keys, other shapes, or NaN or Inf; names them.
    """
    expected = model.state_dict()
    # written by BatchNorm since torch 0.4.1 and read only while training
    missing = [
        key for key in expected if key not in weights and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in weights if key not in expected]
    shapes = [
        f"{key}: {tuple(weights[key].shape)} in the checkpoint, {tuple(value.shape)} in the model"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    refuse_mismatch(what, missing, unexpected, shapes)
    check_finite(weights, what)
    model.load_state_dict(dict(weights), strict=False, assign=assign)


def refuse_mismatch(
    what: str, missing: Iterable[str], unexpected: Iterable[str], shapes: Iterable[str]
) -> None:
    """Raise where anything is listed.

    Raises:
        ModelError: lists the first keys of each kind and how many there are.
    """
    kinds = (
        ("missing", list(missing)),
        ("unexpected", list(unexpected)),
        ("of another shape", list(shapes)),
    )
    faults = [f"{len(keys)} {kind} ({shorten(keys)})" for kind, keys in kinds if keys]
    if faults:
        raise ModelError(
            f"{what}: the weights do not fit the architecture: {'; '.join(faults)}. All keys and "
            "shapes must match: choose the model and --image-size they were trained for, or a "
            "folder whose config.json describes them (number of classes included)."
        )


def check_finite(weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise where a value is NaN or infinite.

    Raises:
        ModelError: names the tensors.
    """
    bad = [
        key
        for key, value in weights.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise ModelError(
            f"{what}: NaN or infinite weights in {len(bad)} tensors ({shorten(bad)}). Training "
            "diverged or the file was written wrongly; use an earlier checkpoint."
        )


def shorten(names: Iterable[str]) -> str:
    """Return the first ten names and how many more there are."""
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError) as e:
        raise _unreadable(path, e) from e


def _read_torch(path: Path) -> Any:
    try:
        # argparse.Namespace holds the settings in checkpoints of timm's own training script
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # on pickle protocols; what cannot be read raises
            mapped = zipfile.is_zipfile(path)  # else torch's old format, which cannot be
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as e:
        named = re.search(r"GLOBAL ([\w.]+)", str(e))
        if named is None and not _names_objects(path):
            raise _unreadable(path, e) from e
        raise ModelError(
            f"checkpoint '{path}' was refused: beside tensors it holds Python objects"
            f"{f' ({named[1]})' if named else ''}, which could run code when they are read. Save "
            "the state dict alone (safetensors.torch.save_file(model.state_dict(), ...)) where "
            "you trust it."
        ) from e
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise _unreadable(path, e) from e


def _names_objects(path: Path) -> bool:
    """Return True for a bare pickle that names Python objects; reads it without running it."""
    try:
        with path.open("rb") as file:
            codes = {opcode.name for opcode, _, _ in pickletools.genops(file)}
    except (ValueError, EOFError, OSError):
        return False
    return bool(codes & {"GLOBAL", "STACK_GLOBAL", "INST"})


def _unreadable(path: Path, error: Exception) -> ModelError:
    lines = [line for line in str(error).strip().splitlines() if "eights" not in line and line]
    return ModelError(
        f"cannot read checkpoint '{path}' ({path.stat().st_size} bytes): it is truncated or not a "
        f"checkpoint ({lines[0][:120] if lines else type(error).__name__}). Allowed: .safetensors, "
        "or a file of torch.save. Copy or download it again."
    )


def _unwrap(content: Any) -> dict[str, Any]:
    """Return the innermost mapping; empty where there is none."""
    if not isinstance(content, Mapping):
        return {}
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return dict(content[key])
    return dict(content)


def _without_prefixes(weights: StateDict) -> StateDict:
    """Return `weights` without what DDP, torch.compile or trainers put before all names."""
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights
