"""Runtimes that artefacts are built for: one module each, named in `TARGETS`.

A target states how it wants to be quantised and which precisions it runs, builds an
artefact from an ONNX graph and opens it behind a `Runner`. A new one is a new module, a
line in `TARGETS` and in `recipe.TargetName`, and a test module.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from vitdeploy.bundle import Artifact, TensorInfo
from vitdeploy.data import Preprocess
from vitdeploy.errors import UnsupportedError, suggest
from vitdeploy.manifest import sha256_from_file
from vitdeploy.recipe import AttentionForm
from vitdeploy.runner import Feeds, Runner

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.graph.qdq import QuantScheme
    from vitdeploy.targets.fusion_report import FusionReport


Settings = Mapping[str, str | int | float | bool]
"""Session settings of an engine, as an artefact keeps them."""


@dataclass(frozen=True)
class Variant:
    """One way an engine can run a model: what `--precision auto` chooses among."""

    precision: str
    settings: Settings = field(default_factory=dict)
    """On top of what the target's `build` sets."""
    placement: str = ""
    """What is in float beside what the search of INT8 left there; nothing where empty."""
    attention: AttentionForm = "as-exported"


@dataclass(frozen=True)
class Way:
    """Another way for an engine to run a model in the same precision."""

    what: str
    """For people."""
    form: AttentionForm = "as-exported"
    """Of attention."""
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class LayerTime:
    """What one layer of an engine's own graph cost, as its counters say."""

    name: str
    kind: str
    """The engine's word for the operator, with the kernel where it tells."""
    milliseconds: float
    """A run, the median of several."""
    is_product: bool
    """Whether it multiplies matrices: a linear layer, a convolution, fused attention."""
    is_int8: bool


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
    images: Callable[[], Iterable[Feeds]] | None = None
    """A pass over images, for what a build measures (FP16's range); None measures nothing."""
    trt_version: str = "10.3"
    """Of TensorRT on the device; only `trt` asks for it."""


class Target(Protocol):
    """What a module of this package provides."""

    NAME: str
    OPSET: int
    PRECISIONS: tuple[str, ...]
    IS_PACKAGED: bool
    """Whether its engine is built on the device, from a package that a run writes."""

    def quant_scheme(self) -> "QuantScheme":
        """Return how this runtime wants its Q/DQ on this machine."""
        ...

    def check_precision(self, precision: str) -> None:
        """Raise UnsupportedError where this runtime cannot run `precision`."""
        ...

    def variants(self) -> tuple[Variant, ...]:
        """Return the ways this machine can run a model, the first of each precision the usual."""
        ...

    def scheduling(self) -> tuple[Settings, ...]:
        """Return ways of using this machine's cores beside the engine's own, which may be faster.

        They name kinds of cores and threads, never a number, and change no result.
        """
        ...

    def ways(self, precision: str) -> tuple[Way, ...]:
        """Return ways of running `precision` beside the usual one, which may be faster here."""
        ...

    def untimed_reason(self) -> str | None:
        """Return why no latency can be measured on this machine; None where it can."""
        ...

    def activation_type(self, artifact: Artifact) -> str:
        """Return the type that products with INT4 weights compute on: `float32`, `int8`, ..."""
        ...

    def float_settings(self, artifact: Artifact) -> Settings:
        """Return settings under which nothing but INT8 activations differs from FP32's results."""
        ...

    def layer_times(self, artifact: Artifact, feeds: Feeds) -> tuple[LayerTime, ...]:
        """Return what each layer costs, in the order of the engine; asked where it can be timed."""
        ...

    def onnx_graph(self, artifact: Artifact) -> Path | None:
        """Return the artefact's ONNX file, which can be taken apart; None where it has none."""
        ...

    def lint_version(self, artifact: Artifact) -> str | None:
        """Return the TensorRT whose rules the artefact's graphs keep; None where there are none."""
        ...

    def fusion(self, artifact: Artifact) -> "FusionReport | None":
        """Return what the builder made of the artefact; None where the engine does not tell.

        Raises:
            UnsupportedError: it would tell, but the builder is not installed here.
            ExportError: the builder refuses the graph.
        """
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
    settings: Settings,
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


HALF_SUFFIX = ".fp16"
"""Of a part's name in a package's FP16 graphs, where they stand beside INT8."""
PROFILED_RUNS = 10
"""Runs behind each `LayerTime`; counters slow the engine down, so only shares of it count."""


TARGETS: dict[str, str] = {
    "onnx": "vitdeploy.targets.onnx",
    "openvino": "vitdeploy.targets.openvino",
    "trt": "vitdeploy.targets.tensorrt",
    "trt-rtx": "vitdeploy.targets.tensorrt_rtx",
}
"""Name -> module, imported when asked for, so that one missing runtime harms no other."""

BAKERS: dict[str, str] = {
    "onnx": "vitdeploy.targets.onnx_preprocessing",
    "openvino": "vitdeploy.targets.openvino_preprocessing",
}
"""Target -> module that puts preprocessing into its artefacts, where its runtime can."""

SHARED_MODULES = (
    "tensorrt_graphs",
    "tensorrt_runner",
    "rtx_builder",
    "fusion_report",
    "overflow",
    "onnx_preprocessing",
    "openvino_preprocessing",
)
"""Modules of this package that are no target themselves."""


class Baker(Protocol):
    """What puts preprocessing into a target's artefacts."""

    def bake(self, artifact: Artifact, preprocess: Preprocess) -> tuple[Path, ...]:
        """Put `preprocess` in front of the artefact, in its own files; return those."""
        ...

    def preprocessing_alone(self, preprocess: Preprocess, artifact: Artifact) -> Runner:
        """Return a runner of the preprocessing alone, with the artefact's settings."""
        ...


def load_baker(target: str) -> Baker:
    """Return what puts preprocessing into the target's artefacts.

    Raises:
        UnsupportedError: the target's runtime does not resize as Pillow does.
    """
    if target not in BAKERS:
        raise UnsupportedError(
            f"--bake-preprocessing is for targets {' and '.join(BAKERS)}; '{target}' has no "
            "resize with antialiasing. Leave it out, and resize before the engine."
        )
    return cast("Baker", importlib.import_module(BAKERS[target]))


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
