"""The manifest of a bundle: the models of `manifest.json`, how it is read, how files are hashed.

Nothing here writes a folder (see `bundle`) and nothing here knows of ONNX or an engine.
"""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vitdeploy.errors import DataError, UnsupportedError, UsageError

FORMAT: Literal["vitdeploy-bundle"] = "vitdeploy-bundle"
SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

_CHUNK_BYTES = 1 << 20


def sha256_from_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_relative(path: str) -> str:
    """Return `path` where it is a plain relative POSIX path.

    Raises:
        ValueError: it is empty, absolute, not normal (`a//b`, `./a`), or leaves the folder.
    """
    pure = PurePosixPath(path)
    windows = "\\" in path or ":" in path
    if not path or windows or pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise ValueError(f"'{path}' is not a relative POSIX path inside the bundle")
    if str(pure) != path or path == ".":
        raise ValueError(f"'{path}' is not in normal form; write '{pure}'")
    return path


RelativePath = Annotated[str, AfterValidator(require_relative)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# An older vitdeploy reads what a newer one wrote in the same schema version, so fields that are
# not known are ignored here (in a recipe, which a person types, they are an error).
_CONFIG = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class FileEntry(BaseModel):
    """One file of the bundle."""

    model_config = _CONFIG

    path: RelativePath
    sha256: Sha256
    bytes: int = Field(ge=0)


class TensorEntry(BaseModel):
    """One input or output; `shape` holds ints and, where dynamic, names."""

    model_config = _CONFIG

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class ModelEntry(BaseModel):
    """What the bundle was made from."""

    model_config = _CONFIG

    name: str
    family: str
    source: str
    task: str
    weights: str


class PartEntry(BaseModel):
    """One part of the model for one target: `path`, its hash, and the files that go with it."""

    model_config = _CONFIG

    name: str
    target: str
    precision: str
    path: RelativePath
    sha256: Sha256
    bytes: int = Field(ge=0)
    """Size of `path` alone; `total_bytes` adds the extra files."""
    parent_sha256: Sha256 | None = None
    inputs: tuple[TensorEntry, ...] = Field(min_length=1)
    outputs: tuple[TensorEntry, ...] = Field(min_length=1)
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Session settings the runner applies."""
    extra_files: tuple[FileEntry, ...] = ()
    """Weights beside the graph: `.bin`, external data."""

    @property
    def total_bytes(self) -> int:
        """Return the size of all the files of the part."""
        return self.bytes + sum(entry.bytes for entry in self.extra_files)


class TilingEntry(BaseModel):
    """How the predictor cuts a picture into inputs of the model; see `data.tiling`."""

    model_config = _CONFIG

    tile_size: int = Field(ge=1)
    max_tiles: int = Field(ge=1)
    """Not counting the thumbnail."""
    thumbnail: bool = True
    """Whether the whole picture follows its tiles, where there is more than one."""


class TrackingEntry(BaseModel):
    """How the predictor follows an object over the frames of a video."""

    model_config = _CONFIG

    most_memories: int = Field(ge=1)
    """Remembered frames that the memory attention reads, the prompted one included."""
    most_pointers: int = Field(ge=1)
    """Object pointers that it reads, the prompted frame's included."""
    stability_delta: float
    stability_threshold: float
    """Of a clear prompt's mask, whose IoU at logits above +- delta must reach this; else the best
    of the masks for ambiguous prompts is taken."""


class Manifest(BaseModel):
    """All of `manifest.json`; `files` lists every file of the bundle except the manifest."""

    model_config = _CONFIG

    format: Literal["vitdeploy-bundle"] = FORMAT
    schema_version: Literal[1] = 1
    model: ModelEntry
    preprocess: dict[str, Any]
    tiling: TilingEntry | None = None
    tracking: TrackingEntry | None = None
    parts: tuple[PartEntry, ...] = ()
    label_names: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()

    @model_validator(mode="after")
    def _check_parts_are_listed(self) -> "Manifest":
        listed = {entry.path: entry for entry in self.files}
        if len(listed) != len(self.files):
            raise ValueError("a path is listed twice in files")
        keys = [(part.name, part.target) for part in self.parts]
        if len(set(keys)) != len(keys):
            raise ValueError("a part is listed twice for one target")
        for part in self.parts:
            own = FileEntry(path=part.path, sha256=part.sha256, bytes=part.bytes)
            for entry in (own, *part.extra_files):
                if listed.get(entry.path) != entry:
                    raise ValueError(
                        f"part '{part.name}' of target '{part.target}' needs '{entry.path}', "
                        "which is not in files with the same sha256 and bytes"
                    )
        return self

    def as_json(self) -> str:
        """Return the text of `manifest.json`: keys in the order of the schema, no NaN."""
        data = self.model_dump(mode="json")
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Return the checked manifest in the file `path`; no other file is touched.

    Raises:
        UsageError: there is no such file.
        DataError: it is not JSON, not ours, or breaks the schema (a path that leaves the
            folder, for instance).
        UnsupportedError: a newer vitdeploy wrote it, in a schema this version does not know.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"'{path.parent}' is not a bundle: it has no {MANIFEST_NAME}. "
            "Name the folder that `vitdeploy export` wrote."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"Cannot read the manifest '{path}': {error}. Copy the bundle again."
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DataError(
            f"'{path}' is not a manifest of vitdeploy: its format is not '{FORMAT}'. "
            "Name the folder that `vitdeploy export` wrote."
        )
    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UnsupportedError(
            f"'{path}' has schema_version {version}; this vitdeploy reads up to {SCHEMA_VERSION}. "
            "Upgrade vitdeploy."
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise DataError(
            f"The manifest '{path}' is not valid:\n{_lines_from_errors(error)}\n"
            "It was edited or damaged; export the model again."
        ) from error


def is_manifest(path: Path) -> bool:
    """Return whether `path` is a JSON file that says it is a manifest of vitdeploy."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def _lines_from_errors(error: ValidationError) -> str:
    return "\n".join(
        f"  {'.'.join(str(step) for step in item['loc']) or 'manifest'}: {item['msg']}"
        for item in error.errors()
    )
