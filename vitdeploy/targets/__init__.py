"""Runtimes that artefacts are built for: one module each, named in `TARGETS`.

A target states how it wants to be quantised and which precisions it runs, builds an
artefact from an ONNX graph and opens it behind a `Runner`. A new one is a new module, a
line in `TARGETS` and in `recipe.TargetName`, and a test module.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from vitdeploy.bundle import Artifact, TensorInfo
from vitdeploy.errors import UnsupportedError, suggest
from vitdeploy.manifest import sha256_from_file
from vitdeploy.runner import Runner

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.graph.qdq import QuantScheme


@dataclass(frozen=True)
class BuildRequest:
    """One graph on its way to a runtime."""

    part: str
    model: "ir.Model"
    """FP32, or with Q/DQ in the target's scheme for `int8`."""
    precision: str
    folder: Path
    """Where the target's files go; exists."""
    parent_sha256: str | None
    """Digest of the FP32 ONNX this comes from."""


class Target(Protocol):
    """What a module of this package provides."""

    NAME: str
    OPSET: int
    PRECISIONS: tuple[str, ...]

    def quant_scheme(self) -> "QuantScheme":
        """Return how this runtime wants its Q/DQ on this machine."""
        ...

    def check_precision(self, precision: str) -> None:
        """Raise UnsupportedError where this runtime cannot run `precision`."""
        ...

    def build(self, request: BuildRequest) -> Artifact:
        """Write the artefact and return it.

        Raises:
            ExportError: the runtime refuses the graph.
        """
        ...

    def open(self, artifact: Artifact, threads: int | None = None) -> Runner:
        """Return a runner of the artefact with its own settings.

        Raises:
            ExportError: the runtime cannot load the file.
        """
        ...


def artifact_from_files(
    target: str,
    files: tuple[Path, ...],
    request: BuildRequest,
    settings: Mapping[str, str | int | float | bool],
) -> Artifact:
    """Return the record of written `files`, the first being what the engine opens."""
    return Artifact(
        part=request.part,
        target=target,
        precision=request.precision,
        path=files[0].absolute(),
        sha256=sha256_from_file(files[0]),
        bytes=sum(file.stat().st_size for file in files),
        parent=request.parent_sha256,
        inputs=tensor_infos(request.model.graph.inputs),
        outputs=tensor_infos(request.model.graph.outputs),
        settings=settings,
        files=tuple(file.absolute() for file in files),
    )


def tensor_infos(values: Iterable["ir.Value"]) -> tuple[TensorInfo, ...]:
    """Return name, shape and dtype of graph inputs or outputs."""
    infos = []
    for value in values:
        dims = tuple(d if isinstance(d, int) else str(d.value or "?") for d in value.shape or ())
        dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
        infos.append(TensorInfo(str(value.name), dims, dtype))
    return tuple(infos)


TARGETS: dict[str, str] = {
    "onnx": "vitdeploy.targets.onnx",
    "openvino": "vitdeploy.targets.openvino",
}
"""Name -> module, imported when asked for, so that one missing runtime harms no other."""


def load_target(name: str) -> Target:
    """Return the target's module.

    Raises:
        UnsupportedError: unknown here, or its runtime is not installed.
    """
    if name not in TARGETS:
        raise UnsupportedError(
            f"target '{name}' is not available in this version; "
            f"use {', '.join(TARGETS)}.{suggest(name, TARGETS)}"
        )
    try:
        return cast("Target", importlib.import_module(TARGETS[name]))
    except ImportError as error:
        raise UnsupportedError(
            f"target '{name}' needs the package '{error.name}', which cannot be imported "
            f"({error}). Install it: pip install {error.name}"
        ) from error


def describe_targets() -> dict[str, str]:
    """Return by `target NAME` the precisions it runs here, or why it does not."""
    found = {}
    for name in TARGETS:
        try:
            target = load_target(name)
        except UnsupportedError as error:
            found[f"target {name}"] = str(error)
            continue
        runs = []
        for precision in target.PRECISIONS:
            try:
                target.check_precision(precision)
            except UnsupportedError:
                continue
            runs.append(precision)
        found[f"target {name}"] = ", ".join(runs)
    return found
