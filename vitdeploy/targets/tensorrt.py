"""NVIDIA TensorRT: graphs for a device that builds its own engine.

An engine belongs to one card and one version, so what ships is ONNX (`tensorrt_graphs`), and the
device builds from it (`vitdeploy.device`). Where TensorRT and a GPU are here, the artefact runs
on them; else ONNX Runtime runs its graph, which shows what quantising costs and no latency.
"""

from pathlib import Path

from vitdeploy.bundle import Artifact
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.lint.versions import version_from_text
from vitdeploy.runner import Feeds, Runner
from vitdeploy.targets import (
    BuildRequest,
    LayerTime,
    Settings,
    Variant,
    Way,
    artifact_from_files,
    tensorrt_graphs,
)
from vitdeploy.targets.fusion_report import FusionReport, fusion_of_artifact, write_fusion
from vitdeploy.targets.tensorrt_runner import gpu_runner, missing_reason, stand_in_runner

NAME = "trt"
OPSET = tensorrt_graphs.OPSET
PRECISIONS = tensorrt_graphs.PRECISIONS
IS_PACKAGED = True
LIBRARY = "tensorrt"


def quant_scheme() -> QuantScheme:
    """Return symmetric s8 with INT8 attention."""
    return tensorrt_graphs.quant_scheme()


def check_precision(precision: str) -> None:
    """Raise UnsupportedError for what no graph here holds."""
    tensorrt_graphs.require_precision(NAME, precision)


def variants() -> tuple[Variant, ...]:
    """Return the precisions that the device can choose among."""
    return tuple(Variant(name) for name in PRECISIONS)


def activation_type(_artifact: Artifact) -> str:
    """Return float16: INT4 weights are dequantised inside the FP16 product."""
    return "float16"


def float_settings(artifact: Artifact) -> Settings:
    """Return the artefact's own: the graph holds the types."""
    return artifact.settings


def scheduling() -> tuple[Settings, ...]:
    """Return none: an engine has the whole device."""
    return ()


def ways(_precision: str) -> tuple[Way, ...]:
    """Return none: the builder chooses, and the graph is in the form that it fuses."""
    return ()


def untimed_reason() -> str | None:
    """Return why no latency can be measured here; None where TensorRT and a GPU are."""
    return missing_reason(LIBRARY)


def layer_times(_artifact: Artifact, _feeds: Feeds) -> tuple[LayerTime, ...]:
    """Return none: a build on the device writes them into its own report."""
    return ()


def onnx_graph(artifact: Artifact) -> Path:
    """Return the graph that stands in where no engine can be built: strong where there is one."""
    return artifact.path


def lint_version(artifact: Artifact) -> str:
    """Return the TensorRT that the graphs were made for."""
    return str(artifact.settings["trt_version"])


def fusion(artifact: Artifact) -> FusionReport:
    """Return what TensorRT for RTX makes of the graph: a forecast of what the device will.

    Raises:
        UnsupportedError: its builder is not installed, or reads no graph of this artefact.
        ExportError: the builder refuses the graph.
        DataError: the report written at the export is damaged.
    """
    return fusion_of_artifact(artifact)


def build(request: BuildRequest) -> Artifact:
    """Write the graphs of `request.trt_version`, and `fusion.json` where a builder is at hand.

    Raises:
        UsageError: the version is not known.
        ExportError: the version does not take the graph.
    """
    request = tensorrt_graphs.with_planned_sizes(request)
    version = version_from_text(request.trt_version)
    graphs = tensorrt_graphs.graphs_from_request(request, version)
    written = tensorrt_graphs.save_graphs(graphs, request)
    files = tuple(file for kind in written.values() for file in kind)
    if "strong" in written:
        files += write_fusion(written["strong"][0], request)
    settings: Settings = {
        "trt_version": request.trt_version,
        **tensorrt_graphs.overflow_settings(graphs.overflow),
    }
    artifact = artifact_from_files(NAME, files, request, settings)
    with stand_in_runner(artifact.path, None, NAME):
        return artifact


def open(artifact: Artifact, threads: int | None = None) -> Runner:  # noqa: A001
    """Return a runner: TensorRT where it is here, else ONNX Runtime, which says that it stands in.

    Raises:
        ExportError: the engine cannot be built, or ONNX Runtime refuses the graph.
    """
    if untimed_reason() is None:
        return gpu_runner(LIBRARY, artifact.path)
    return stand_in_runner(artifact.path, threads, NAME)
