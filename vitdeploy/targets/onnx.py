"""ONNX Runtime on the CPU: an ordinary ONNX file, run as it is."""

import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.bundle import Artifact, TensorInfo
from vitdeploy.cpu import cpu_has
from vitdeploy.errors import DataError, ExportError, UnsupportedError
from vitdeploy.graph.blocks import half_scales_
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.graph.save import (
    PROTOBUF_LIMIT_BYTES,
    drop_mapped_pages,
    save_model,
    weights_bytes,
    with_own_weights,
)
from vitdeploy.recipe import INT4_PRECISIONS
from vitdeploy.runner import Feeds, Outputs
from vitdeploy.targets import (
    PROFILED_RUNS,
    BuildRequest,
    LayerTime,
    Settings,
    Variant,
    Way,
    artifact_from_files,
)

NAME = "onnx"
OPSET = 20
PRECISIONS = ("fp32", "fp16", "int8", "w4a16", "w4a8")
IS_PACKAGED = False
_MATMULNBITS_LEVELS = {"w4a16": "1", "w4a8": "4"}
"""`session.qdq_matmulnbits_accuracy_level`: 1 computes in FP32, 4 in INT8, which is the default."""
_RELEASING_PIXELS = 640 * 640
"""Graphs in memory that read larger images give their memory back after each run, for the search
has up to three at a time, and each of SAM's at 1024 pixels would keep 3 to 5 GB."""
_IN_MEMORY_BYTES = 512 << 20
"""Weights above which a graph is not serialised in memory, which takes them three times."""
_NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
}


def quant_scheme() -> QuantScheme:
    """Return u8 activations with s8 weights; 7-bit weights on a CPU without VNNI."""
    return QuantScheme(
        activation=ir.DataType.UINT8,
        weight_bits=8 if cpu_has("vnni") else 7,
        quantizes_conv_outputs=True,
        pointwise_convs_as_matmul=True,
        quantizes_single_rows=False,
    )


def check_precision(precision: str) -> None:
    """Raise UnsupportedError for what ONNX Runtime's CPU provider has no kernels for."""
    if precision == "bf16":
        raise UnsupportedError(
            "target 'onnx' cannot run bf16: ONNX Runtime's CPU provider has no bf16 MatMul. "
            "Use --target openvino --bf16, or --fp16."
        )
    if precision not in PRECISIONS:
        raise UnsupportedError(
            f"target 'onnx' has no precision '{precision}'; it has {', '.join(PRECISIONS)}."
        )


def activation_type(artifact: Artifact) -> str:
    """Return what a product with INT4 weights computes on: x86 has no FP16 products."""
    return "int8" if artifact.precision == "w4a8" else "float32"


def float_settings(artifact: Artifact) -> Settings:
    """Return the settings under which only INT8 activations differ from FP32's results."""
    return artifact.settings


def variants() -> tuple[Variant, ...]:
    """Return FP32 and INT8; FP16 has kernels on Arm alone, elsewhere it is cast to FP32."""
    has_half = platform.machine().lower() in ("arm64", "aarch64")
    names = ("fp32", "fp16", "int8") if has_half else ("fp32", "int8")
    return tuple(Variant(name) for name in names)


def scheduling() -> tuple[Settings, ...]:
    """Return none: ONNX Runtime takes all cores, and knows no kinds of them."""
    return ()


def ways(precision: str) -> tuple[Way, ...]:
    """Return q, k and v from layers of their own, and attention as ONNX Runtime's operator."""
    if precision in INT4_PRECISIONS:
        return ()
    return (
        Way("q, k and v from layers of their own", form="split"),
        Way("attention as one operator", form="fused"),
    )


def untimed_reason() -> str | None:
    """Return None: the CPU is here."""
    return None


def build(request: BuildRequest) -> Artifact:
    """Write `<part>.onnx` and load it once, so that a file that cannot run never ships."""
    from vitdeploy.graph.half import half_from_model

    model = request.model
    if request.precision == "fp16":
        model = half_from_model(model)
    settings = {}
    if request.precision in _MATMULNBITS_LEVELS:
        model = model.clone()
        half_scales_(model)
        level = _MATMULNBITS_LEVELS[request.precision]
        settings = {"session.qdq_matmulnbits_accuracy_level": level}
    path = request.folder / f"{request.part}.onnx"
    files = save_model(model, path)
    artifact = artifact_from_files(NAME, files, request, settings)
    with open(artifact):
        return artifact


def open(artifact: Artifact, threads: int | None = None) -> "OrtRunner":  # noqa: A001
    """Return a runner of the artefact.

    Raises:
        ExportError: ONNX Runtime refuses the file.
    """
    return OrtRunner(artifact.path, threads=threads, settings=artifact.settings)


def layer_times(artifact: Artifact, feeds: Feeds) -> tuple[LayerTime, ...]:
    """Return the kernel times of ONNX Runtime's profile, after its fusions."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    for option, value in artifact.settings.items():
        options.add_session_config_entry(option, str(value))
    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(
            str(artifact.path), sess_options=options, providers=["CPUExecutionProvider"]
        )
        for _ in range(PROFILED_RUNS + 1):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
            spent.setdefault(key, []).append(event["dur"] / 1000.0)
    return tuple(
        LayerTime(
            name=name,
            kind=kind,
            # The first run allocates.
            milliseconds=float(np.median(times[1:])),
            is_product=any(word in kind for word in ("MatMul", "Gemm", "Conv", "Attention")),
            is_int8=kind.startswith("QLinear") or "Integer" in kind or kind == "QGemm",
        )
        for (name, kind), times in spent.items()
    )


def onnx_graph(artifact: Artifact) -> Path:
    """Return the file itself."""
    return artifact.path


def lint_version(_artifact: Artifact) -> None:
    """Return None: TensorRT's rules are not for this engine."""


def fusion(_artifact: Artifact) -> None:
    """Return None: what ONNX Runtime fused is in the kinds of `layer_times`."""


def runner_from_model(
    model: ir.Model,
    threads: int | None = None,
    settings: Mapping[str, str | int | float | bool] | None = None,
    *,
    in_listed_order: bool = False,
) -> "OrtRunner":
    """Return a runner of a graph in memory; a large one passes through a temporary file.

    Args:
        model: graph; not changed.
        threads: as many as ONNX Runtime likes where None.
        settings: of the session.
        in_listed_order: run the nodes as the graph lists them, but for those that no output
            needs. ONNX Runtime's own order runs the whole network before the first of many
            reductions, and keeps all they read; without fusions it runs the others too.

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    if in_listed_order:
        model = model.clone()
        RemoveUnusedNodesPass()(model)
    releases = any(_is_large_image(value) for value in model.graph.inputs)
    size = weights_bytes(model)
    if size <= _IN_MEMORY_BYTES:
        content = ir.to_proto(with_own_weights(model)).SerializeToString()
        return OrtRunner(
            content, threads, settings, releases_memory=releases, in_listed_order=in_listed_order
        )
    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
        path = Path(folder) / "graph.onnx"
        save_model(model, path, _IN_MEMORY_BYTES)
        drop_mapped_pages(model)  # the session maps its own
        if size > PROTOBUF_LIMIT_BYTES:
            # Packed copies of so many weights would need their memory twice.
            settings = {"session.disable_prepacking": "1", **(settings or {})}
        # The session has read everything it needs once it exists.
        return OrtRunner(
            path, threads, settings, releases_memory=releases, in_listed_order=in_listed_order
        )


def _is_large_image(value: ir.Value) -> bool:
    sides = [side for side in (value.shape or ())[2:] if isinstance(side, int)]
    return len(sides) == 2 and sides[0] * sides[1] > _RELEASING_PIXELS


class OrtRunner:
    """Runs an ONNX file (or the bytes of one) on ONNX Runtime's CPU provider."""

    def __init__(
        self,
        source: Path | bytes,
        threads: int | None = None,
        settings: Mapping[str, str | int | float | bool] | None = None,
        *,
        releases_memory: bool = False,
        in_listed_order: bool = False,
    ) -> None:
        """Load the graph.

        Args:
            source: file, or its bytes.
            threads: as many as ONNX Runtime likes where None.
            settings: of the session.
            releases_memory: give memory back after each run, which takes a little longer.
            in_listed_order: as in `runner_from_model`.

        Raises:
            ExportError: ONNX Runtime refuses the graph.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        # After a first run ONNX Runtime plans memory as one block and keeps that run's beside it:
        # 5.3 instead of 2.8 GiB for a global attention of SAM at 1024 pixels, and no gain in time
        # (ViTs of 1 ms: below 1 %, at 14 s none).
        options.enable_mem_pattern = False
        if in_listed_order:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
            # A node that ONNX Runtime makes counts as the last of the list, and what reads it runs
            # after the whole network: no fusion, no copy of a DequantizeLinear for each reader.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            settings = {**(settings or {}), "session.disable_quant_qdq": "1"}
        # Idle threads that spin after a run would steal time from the engine timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for key, value in (settings or {}).items():
            options.add_session_config_entry(key, str(value))
        shown = source.name if isinstance(source, Path) else "graph"
        try:
            self._session = ort.InferenceSession(
                str(source) if isinstance(source, Path) else source,
                sess_options=options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime {ort.__version__} cannot load '{shown}': {_first_line(error)}"
            ) from error
        self.engine = f"onnxruntime {ort.__version__}"
        self.threads = threads or _default_threads()
        self._names = [output.name for output in self._session.get_outputs()]
        self.inputs = tuple(
            TensorInfo(node.name, tuple(node.shape), _NUMPY_TYPES.get(node.type, node.type))
            for node in self._session.get_inputs()
        )
        self._input_names = {tensor.name for tensor in self.inputs}
        self._run_options = ort.RunOptions()
        if releases_memory:
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __call__(self, feeds: Feeds) -> Outputs:
        """Return all outputs by name.

        Raises:
            DataError: the feeds do not fit the graph's inputs.
        """
        wanted = {name: value for name, value in feeds.items() if name in self._input_names}
        try:
            values = self._session.run(self._names, wanted, self._run_options)
        except Exception as error:
            shapes = {name: tuple(np.shape(value)) for name, value in feeds.items()}
            raise DataError(
                f"ONNX Runtime cannot run the graph on {shapes}: {_first_line(error)}"
            ) from error
        # An output as it comes lies in the session's memory, and keeps all of that alive.
        return {name: np.array(value) for name, value in zip(self._names, values, strict=True)}

    def __enter__(self) -> "OrtRunner":
        return self

    def __exit__(self, *_: object) -> None:
        del self._session


def _default_threads() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or 1


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
