"""What a user's MODEL text refers to: an alias, a hub name or a folder.

Reads at most a folder's config.json; nothing here imports torch or builds a model. Which
family a name belongs to is decided in `vitdeploy.models`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitdeploy.errors import ModelError, UsageError

Kind = Literal["timm", "hf", "timm-folder", "transformers-folder", "packaged"]


@dataclass(frozen=True)
class Alias:
    """A short name that ships with the package."""

    source: str
    """`timm:NAME`, `hf:REPO`, or `packaged:NAME`."""
    image_size: int
    """Pixels of the square input, without `--image-size`."""


@dataclass(frozen=True)
class Reference:
    """A MODEL that is known to exist by name, before anything is built."""

    name: str
    """As the user typed it."""
    family: str
    """A key of `FAMILIES`."""
    kind: Kind
    value: str
    """The timm name, the hub repository, or the folder."""
    image_size: int | None = None
    """Pixels, where known without building the model."""

    @property
    def source(self) -> str:
        """Where the model comes from, without a path of this machine."""
        if self.kind == "packaged":
            return f"packaged:{self.name}"
        if self.kind in ("timm", "hf"):
            return f"{self.kind}:{self.value}"
        return f"folder:{Path(self.value).resolve().name}"

    @property
    def shown_name(self) -> str:
        """What reports call the model: as typed, but the last part alone of a folder's path."""
        return self.source.partition(":")[2] if self.kind.endswith("folder") else self.name

    @property
    def folder(self) -> Path | None:
        """The model folder, where there is one."""
        return None if self.kind in ("timm", "hf") else Path(self.value)


def is_folder_name(name: str) -> bool:
    """Return True where `name` is meant as a path rather than as an alias."""
    return Path(name).is_dir() or "/" in name or "\\" in name or name.startswith((".", "~"))


def read_folder_config(folder: Path) -> tuple[Kind, dict[str, Any]]:
    """Return the layout of a model folder and its parsed config.json.

    Raises:
        ModelError: there is no such folder, no config.json, or one of neither layout.
        UsageError: the path is a file.
    """
    if folder.is_file():
        raise UsageError(_file_advice(folder))
    if not folder.is_dir():
        raise ModelError(
            f"model folder '{folder}' does not exist. Give a folder with config.json and weights, "
            "an alias (`vitdeploy models` lists them), timm:NAME or hf:REPO."
        )
    config = read_json(folder / "config.json")
    if "architecture" in config:
        return "timm-folder", config
    if "model_type" in config:
        return "transformers-folder", config
    raise ModelError(
        f"config.json in '{folder}' has neither 'architecture' (timm's layout) nor 'model_type' "
        "(transformers' layout), so the model is not known. Save the folder with timm's "
        "save_for_hf or transformers' save_pretrained."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        ModelError: the file is missing, unreadable or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ModelError(
            f"no {path.name} in '{path.parent}'. A model folder holds config.json and its weights, "
            "in timm's or in transformers' layout."
        ) from e
    except (OSError, ValueError) as e:
        raise ModelError(f"cannot read '{path}': {e}. It must be valid JSON in UTF-8.") from e
    if not isinstance(content, dict):
        raise ModelError(f"'{path}' holds a JSON {type(content).__name__}; it must be an object.")
    return content


def _file_advice(path: Path) -> str:
    if path.suffix == ".onnx":
        return (
            f"'{path}' is an ONNX graph; a PyTorch model is needed here (alias, hub name, folder)."
        )
    return (
        f"'{path}' is a file, not a model. Name the architecture and give the weights apart: "
        f"MODEL --checkpoint {path.name}, or give a folder with config.json."
    )
