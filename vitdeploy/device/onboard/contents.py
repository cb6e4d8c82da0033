"""What a package holds: `package.json` as dataclasses, read and verified against its hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .failure import MEASUREMENT, MISSING, Failure

PACKAGE_NAME = "package.json"
PACKAGE_FORMAT = "vitdeploy-trt-package"
PACKAGE_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class InputSpec:
    """One input of a part; `shape` has names where it is dynamic, the others are its range."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    @property
    def is_dynamic(self) -> bool:
        """Return whether a dimension has a name instead of a size."""
        return any(isinstance(size, str) for size in self.shape)


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file of a part, and what its engine must keep."""

    precision: str
    typing: str
    """`strong` or `weak`."""
    file: str
    sha256: str
    oldest_tensorrt: str
    """`10.0`, for instance: older ones cannot read it."""
    min_sqnr_db: Mapping[str, float]
    """By output."""


@dataclass(frozen=True)
class StoredTensor:
    """A raw little-endian file of the package."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GoldenCase:
    """What goes into the engine at once, and what the FP32 model made of it."""

    inputs: Mapping[str, StoredTensor]
    reference: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class PartSpec:
    """One part of the model."""

    name: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    graphs: tuple[GraphSpec, ...]
    golden: tuple[GoldenCase, ...]

    @property
    def precisions(self) -> tuple[str, ...]:
        """Return the precisions there are graphs of, in the package's order."""
        return tuple(dict.fromkeys(graph.precision for graph in self.graphs))


@dataclass(frozen=True)
class PackageContents:
    """A package on disk, its hashes checked."""

    folder: Path
    model: str
    vitdeploy_version: str
    parts: tuple[PartSpec, ...]


def read_contents(folder: Path) -> PackageContents:
    """Return what the package in `folder` holds, every file of it verified.

    Raises:
        Failure: package.json is missing or damaged, a newer vitdeploy wrote it, or a file is
            missing or changed.
    """
    path = folder / PACKAGE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(
            f"cannot read '{path}': {error}. Copy the whole folder again.", MEASUREMENT
        ) from error
    if not isinstance(data, dict) or data.get("format") != PACKAGE_FORMAT:
        raise Failure(
            f"'{path}' does not say that it is a {PACKAGE_FORMAT}. Copy the whole folder again.",
            MEASUREMENT,
        )
    if data.get("schema_version") != PACKAGE_SCHEMA_VERSION:
        raise Failure(
            f"'{path}' has schema_version {data.get('schema_version')}; this build.py reads "
            f"{PACKAGE_SCHEMA_VERSION}. Use the build.py of the same folder.",
            MISSING,
        )
    try:
        contents = PackageContents(
            folder=folder,
            model=data["model"],
            vitdeploy_version=data["vitdeploy_version"],
            parts=tuple(_part(item) for item in data["parts"]),
        )
        files = {item["file"]: item["sha256"] for item in data["files"]}
    except (KeyError, TypeError, ValueError) as error:
        raise Failure(f"'{path}' is damaged ({error!r}). Copy it again.", MEASUREMENT) from error
    _verify(folder, files)
    return contents


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def read_stored(folder: Path, tensor: StoredTensor) -> bytes:
    """Return the bytes of a golden tensor."""
    return (folder / tensor.file).read_bytes()


def _verify(folder: Path, files: Mapping[str, str]) -> None:
    problems = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
            continue
        try:
            seen = sha256_of(path)
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
            continue
        if seen != expected:
            problems.append(f"{name} has sha256 {seen[:16]}..., not {expected[:16]}...")
    if problems:
        raise Failure(
            f"the package '{folder}' is not what was written: {'; '.join(problems)}. "
            "Copy it again.",
            MEASUREMENT,
        )


def _part(item: Mapping[str, Any]) -> PartSpec:
    return PartSpec(
        name=item["name"],
        inputs=tuple(
            InputSpec(
                name=entry["name"],
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                minimum=tuple(entry["min"]),
                optimum=tuple(entry["opt"]),
                maximum=tuple(entry["max"]),
            )
            for entry in item["inputs"]
        ),
        outputs=tuple(entry["name"] for entry in item["outputs"]),
        graphs=tuple(
            GraphSpec(
                precision=entry["precision"],
                typing=entry["typing"],
                file=entry["file"],
                sha256=entry["sha256"],
                oldest_tensorrt=entry["oldest_tensorrt"],
                min_sqnr_db=dict(entry["min_sqnr_db"]),
            )
            for entry in item["graphs"]
        ),
        golden=tuple(
            GoldenCase(inputs=_stored(entry["inputs"]), reference=_stored(entry["reference"]))
            for entry in item["golden"]
        ),
    )


def _stored(items: Mapping[str, Mapping[str, Any]]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(file=item["file"], dtype=item["dtype"], shape=tuple(item["shape"]))
        for name, item in items.items()
    }
