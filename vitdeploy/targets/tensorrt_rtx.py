"""NVIDIA TensorRT for RTX: an engine for GeForce and RTX cards, built here without a GPU.

The engine comes with the strongly typed graph it was built from, which ONNX Runtime runs where
there is no such card, and with `fusion.json`, the builder's own account of its kernels.
"""

from pathlib import Path

from vitdeploy.bundle import Artifact
from vitdeploy.errors import ExportError
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.lint.versions import version_from_text
from vitdeploy.manifest import sha256_from_file
from vitdeploy.runner import Feeds, Runner
from vitdeploy.targets import (
    BuildRequest,
    LayerTime,
    Settings,
    Variant,
    Way,
    artifact_from_files,
    tensor_infos,
    tensorrt_graphs,
)
from vitdeploy.targets.fusion_report import (
    FusionReport,
    fusion_from_engine,
    fusion_of_artifact,
    write_report,
)
from vitdeploy.targets.rtx_builder import LIBRARY, build_rtx_engine, require_builder
from vitdeploy.targets.tensorrt_runner import (
    gpu_runner,
    input_specs,
    missing_reason,
    stand_in_runner,
)

NAME = "trt-rtx"
OPSET = tensorrt_graphs.OPSET
PRECISIONS = tensorrt_graphs.PRECISIONS
IS_PACKAGED = False


def quant_scheme() -> QuantScheme:
    """Return symmetric s8 with INT8 attention."""
    return tensorrt_graphs.quant_scheme()


def check_precision(precision: str) -> None:
    """Raise UnsupportedError for what no graph here holds, or where the builder is missing."""
    tensorrt_graphs.require_precision(NAME, precision)
    require_builder()


def variants() -> tuple[Variant, ...]:
    """Return the precisions that a card can choose among."""
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
    """Return why no latency can be measured here; None where a card is."""
    return missing_reason(LIBRARY)


def layer_times(_artifact: Artifact, _feeds: Feeds) -> tuple[LayerTime, ...]:
    """Return none: the card's own profiler is not read here."""
    return ()


def onnx_graph(artifact: Artifact) -> Path:
    """Return the graph that the engine was built from."""
    return artifact.path.with_name(f"{artifact.part}.strong.onnx")


def lint_version(_artifact: Artifact) -> str:
    """Return the name by which the rules know TensorRT for RTX."""
    return NAME


def fusion(artifact: Artifact) -> FusionReport:
    """Return what the builder made of the engine.

    Raises:
        DataError: the report written at the export is damaged.
    """
    return fusion_of_artifact(artifact)


def build(request: BuildRequest) -> Artifact:
    """Write `<part>.engine`, the graph it came from and `<part>.fusion.json`.

    Raises:
        UnsupportedError: the builder is not installed.
        ExportError: the builder refuses the graph.
    """
    request = tensorrt_graphs.with_planned_sizes(request)
    graphs = tensorrt_graphs.graphs_from_request(request, version_from_text(NAME))
    (strong, *beside), *_ = tensorrt_graphs.save_graphs(graphs, request).values()
    built = build_rtx_engine(strong, input_specs(tensor_infos(request.model.graph.inputs)))
    assert graphs.strong is not None
    engine = request.folder / f"{request.part}.engine"
    engine.write_bytes(built.data)
    fusion = fusion_from_engine(graphs.strong, built)
    report = write_report(fusion, request.folder / f"{request.part}.fusion.json")
    settings: Settings = {
        "tensorrt_rtx": built.version,
        "compute_capabilities": ", ".join(built.cards),
        **tensorrt_graphs.overflow_settings(graphs.overflow),
    }
    files = (engine, strong, *beside, report)
    artifact = artifact_from_files(NAME, files, request, settings)
    with stand_in_runner(strong, None, NAME):
        return artifact


def open(artifact: Artifact, threads: int | None = None) -> Runner:  # noqa: A001
    """Return a runner: the engine where a card is here, else ONNX Runtime on its graph.

    Raises:
        ExportError: the engine does not load, or ONNX Runtime refuses the graph.
    """
    if untimed_reason() is None:
        return gpu_runner(LIBRARY, artifact.path)
    if sha256_from_file(artifact.path) != artifact.sha256:  # no card is here that would notice
        raise ExportError(
            f"cannot load '{artifact.path.name}': it is not the engine that was built. Export the "
            "model again."
        )
    return stand_in_runner(onnx_graph(artifact), threads, NAME)
