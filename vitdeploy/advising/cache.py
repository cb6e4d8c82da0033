"""What was tried before, kept by content: a record is found again only where nothing changed.

The key holds the weights, the images, the recipe, the versions and the machine.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitdeploy.advising.schema import Tried
from vitdeploy.errors import UsageError
from vitdeploy.manifest import sha256_from_file
from vitdeploy.models.spec import ExportPart, LoadedModel


def default_work_folder() -> Path:
    """Return the folder for records that the user's cache has, or would have."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vitdeploy" / "advise"


def key_from(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def weights_sha256(loaded: LoadedModel) -> str:
    """Return the SHA-256 of all weights with their names, or of the ONNX file as it came."""
    digest = hashlib.sha256()
    for part in loaded.parts:
        digest.update(part.name.encode())
        if part.file is not None:
            digest.update(sha256_from_file(part.file).encode())
        else:
            _add_module(digest, part)
    return digest.hexdigest()


def _add_module(digest: Any, part: ExportPart) -> None:
    import torch

    # its code decides what is computed from the weights, and has no content to hash but this
    digest.update(repr(part.module).encode())
    for name, tensor in part.module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


class Records:
    """The finished candidates in a folder, one small file each."""

    def __init__(self, folder: Path) -> None:
        """Create the folder.

        Raises:
            UsageError: it cannot be written.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UsageError(
                f"cannot keep what is tried in '{folder}': {error.strerror}. "
                "Choose a folder you may write with --work."
            ) from error

    def read(self, key: str) -> Tried | None:
        """Return the record, or None where there is none that can be read."""
        try:
            return Tried.model_validate_json(self._path(key).read_bytes())
        except (OSError, ValidationError):
            return None

    def was_dropped(self, key: str) -> bool:
        """Return whether a run's time ended while it tried this."""
        return self._dropped(key).exists()

    def drop(self, key: str) -> None:
        """Remember that time ended while this was tried."""
        self._dropped(key).touch()

    def write(self, key: str, tried: Tried) -> None:
        """Keep a record; it appears whole or not at all."""
        passing = self._path(key).with_suffix(f".{os.getpid()}")
        passing.write_text(tried.model_dump_json(indent=2), encoding="utf-8")
        passing.replace(self._path(key))
        self._dropped(key).unlink(missing_ok=True)

    def _dropped(self, key: str) -> Path:
        return self.folder / f"{key}.dropped"

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
