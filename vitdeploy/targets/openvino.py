"""OpenVINO on the CPU: an IR (`.xml` and `.bin`) from the same graph ONNX Runtime gets."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino as ov

from vitdeploy.bundle import Artifact
from vitdeploy.cpu import cpu_has, has_core_kinds, has_sibling_threads
from vitdeploy.errors import DataError, ExportError, UnsupportedError
from vitdeploy.graph.blocks import block_sizes, half_weights_
from vitdeploy.graph.conv_bias import bias_shared_convs_
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.graph.save import save_model
from vitdeploy.openvino_core import openvino_core
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

NAME = "openvino"
OPSET = 20
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "w4a16", "w4a8")
IS_PACKAGED = False
HINT = "INFERENCE_PRECISION_HINT"
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
"""Channels of an activation that share a scale while it is quantised to INT8; 0 leaves it in float.
Unless told, the plugin takes 32 where the weights' blocks are of 32 or more: W4A16 is W4A8 then."""
_BF16_BETWEEN = ("int8", "mixed", "w4a16", "w4a8")
"""Precisions whose float layers compute in bf16 where the CPU has it."""
_PRODUCTS = frozenset(
    {"FullyConnected", "MatMul", "Convolution", "GroupConvolution", "Subgraph"}
    | {"FullyConnectedCompressed", "FullyConnectedQuantized", "FullyConnectedQuantizedLegacy"}
    | {"ScaledDotProductAttention"}
)


def quant_scheme() -> QuantScheme:
    """Return u8 activations with s8 weights; only inputs and weights need quantising.

    Attention in INT8 on one core of a CPU with VNNI, ms: ViT-B 58 -> 53, DINOv2-S at 518 pixels
    213 -> 173; Swin's, which has biases, 21 -> 24. That is worth a tenth of the products' noise
    (0.4 dB); with half of it allowed (1.8 dB), vit-digits lost up to 2.4 dB on images unlike those
    of the calibration, and fastvit_cifar10 has the same sites in INT8 with either.
    """
    return QuantScheme(
        activation=ir.DataType.UINT8,
        weight_bits=8 if cpu_has("vnni") else 7,
        packs_attention=True,
        attention_noise_share=0.1,
        most_int8_attention_tokens=4096 if cpu_has("vnni") else 0,
    )


def check_precision(precision: str) -> None:
    """Raise UnsupportedError for a precision this runtime or this CPU does not have."""
    if precision not in PRECISIONS:
        raise UnsupportedError(
            f"target 'openvino' has no precision '{precision}'; it has {', '.join(PRECISIONS)}."
        )
    if precision == "bf16" and not cpu_has("bf16"):
        raise UnsupportedError(
            "target 'openvino' runs bf16 only on a CPU with avx512_bf16, amx_bf16 or Arm's "
            "bf16 extension, which this one lacks. Use --fp16 or --int8."
        )
    if precision == "w4a8" and not cpu_has("vnni"):
        raise UnsupportedError(
            "target 'openvino' quantises activations of INT4 products only on a CPU with VNNI, "
            "which this one lacks. Use --int4 (w4a16), or --target onnx --precision w4a8."
        )


def float_hint(precision: str) -> str:
    """Return the type float layers compute in, as OpenVINO's precision hint.

    Fixed here because OpenVINO otherwise takes bf16 wherever the CPU has it, also for a
    model that was asked for in FP32.
    """
    if precision == "fp16":
        return "f16"
    if precision == "bf16" or (precision in _BF16_BETWEEN and cpu_has("bf16")):
        return "bf16"
    return "f32"


def activation_type(artifact: Artifact) -> str:
    """Return what a product with INT4 weights computes on."""
    if artifact.precision == "w4a8":
        return "int8"
    hint = str(artifact.settings[HINT])
    return {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[hint]


def float_settings(artifact: Artifact) -> Settings:
    """Return the settings under which only INT8 activations differ from FP32's results."""
    return {**artifact.settings, HINT: "f32"}


def variants() -> tuple[Variant, ...]:
    """Return what this CPU computes in; INT8 with each type for the layers between."""
    half = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names = ["fp32", *(["bf16"] if cpu_has("bf16") else []), *(["fp16"] if "FP16" in half else [])]
    between = ["bf16", "f32"] if cpu_has("bf16") else ["f32"]
    return (
        *(Variant(name, {HINT: float_hint(name)}) for name in names),
        *(Variant("int8", {HINT: hint}) for hint in between),
    )


def scheduling() -> tuple[Settings, ...]:
    """Return the plugin's other kinds of cores and threads, where this CPU has several.

    For latency it takes one thread a core, and on hybrid CPUs chooses the cores by its own rules.
    """
    kinds: list[Settings] = []
    if has_core_kinds():
        kinds += [{"SCHEDULING_CORE_TYPE": kind} for kind in ("PCORE_ONLY", "ANY_CORE")]
    if has_sibling_threads():
        kinds += [{"ENABLE_HYPER_THREADING": "YES"}]
    return tuple(kinds)


def ways(precision: str) -> tuple[Way, ...]:
    """Return q, k and v from layers of their own, no fused subgraphs, and padded tokens.

    A multiple of 32 tokens is for the tiles of AMX; without it 8 is the faster, where either is.
    With INT4 weights f32, where bf16 is the usual: without AMX it may be the faster of the two.
    """
    if precision in INT4_PRECISIONS:
        is_short = float_hint(precision) != "f32"
        return (Way("f32 where it is not INT8", settings={HINT: "f32"}),) if is_short else ()
    tiles = (Way("tokens padded to a multiple of 32", form="padded-32"),) if cpu_has("amx") else ()
    return (
        Way("q, k and v from layers of their own", form="split"),
        Way("no fused subgraphs", settings={"SNIPPETS_MODE": "DISABLE"}),
        Way("tokens padded to a multiple of 8", form="padded-8"),
        *tiles,
    )


def untimed_reason() -> str | None:
    """Return None: the CPU is here."""
    return None


def build(request: BuildRequest) -> Artifact:
    """Write `<part>.xml` and `<part>.bin` and compile them once."""
    settings: dict[str, str] = {HINT: float_hint(request.precision)}
    model = request.model.clone()
    bias_shared_convs_(model)
    blocks = block_sizes(model)
    if blocks:
        half_weights_(model)
        settings[GROUP] = str(blocks[0] if request.precision == "w4a8" else 0)
    passing = request.folder / f".{request.part}.onnx"
    passing_files = save_model(model, passing)
    path = request.folder / f"{request.part}.xml"
    try:
        converted = ov.convert_model(passing)
        _name_tensors(converted, request.model)
        compress = request.precision in ("fp16", "bf16")
        ov.save_model(converted, path, compress_to_fp16=compress)
    except Exception as error:
        raise ExportError(
            f"OpenVINO {ov.__version__} cannot convert '{request.part}': {_reason(error)}"
        ) from error
    finally:
        for file in passing_files:
            file.unlink(missing_ok=True)
    make_reproducible(path)
    artifact = artifact_from_files(
        NAME,
        (path, path.with_suffix(".bin")),
        request,
        settings=settings,
    )
    with open(artifact):
        return artifact


def open(artifact: Artifact, threads: int | None = None) -> "OpenVinoRunner":  # noqa: A001
    """Return a runner of the artefact.

    Raises:
        ExportError: OpenVINO refuses the files.
    """
    return OpenVinoRunner(artifact.path, threads=threads, settings=artifact.settings)


def layer_times(artifact: Artifact, feeds: Feeds) -> tuple[LayerTime, ...]:
    """Return OpenVINO's performance counters; fused attention is one `Subgraph`."""
    core = openvino_core()
    config = {"PERFORMANCE_HINT": "LATENCY", **artifact.settings, "PERF_COUNT": True}
    request = core.compile_model(core.read_model(artifact.path), "CPU", config)
    request = request.create_infer_request()
    spent: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(PROFILED_RUNS + 1):
        request.infer(dict(feeds))
        for layer in request.get_profiling_info():
            milliseconds = 1000.0 * layer.real_time.total_seconds()
            if milliseconds:
                key = (layer.node_name, layer.node_type, layer.exec_type)
                spent.setdefault(key, []).append(milliseconds)
    return tuple(
        LayerTime(
            name=name,
            kind=f"{kind} {kernel}",
            # The first run allocates.
            milliseconds=float(np.median(times[1:] or times)),
            is_product=kind in _PRODUCTS,
            is_int8=kernel.lower().endswith(("_i8", "_u8")),
        )
        for (name, kind, kernel), times in spent.items()
    )


def onnx_graph(_artifact: Artifact) -> None:
    """Return None: OpenVINO's own format is not taken apart here."""


def lint_version(_artifact: Artifact) -> None:
    """Return None: TensorRT's rules are not for this engine."""


def fusion(_artifact: Artifact) -> None:
    """Return None: what OpenVINO fused is in the kinds of `layer_times`."""


class OpenVinoRunner:
    """Runs an IR, or an ONNX file, on OpenVINO, one request at a time."""

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        settings: Mapping[str, str | int | float | bool] | None = None,
        device: str = "CPU",
    ) -> None:
        core = openvino_core()
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **(settings or {})}
        if threads and device == "CPU":
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(core.read_model(path), device, config)
            self._request = self._compiled.create_infer_request()
        except Exception as error:
            raise ExportError(
                f"OpenVINO {ov.__version__} cannot compile '{path.name}': {_reason(error)}"
            ) from error
        self.engine = f"openvino {ov.__version__.split('-')[0]}"
        self.threads = (
            int(self._compiled.get_property("INFERENCE_NUM_THREADS")) if device == "CPU" else 1
        )
        self._names = [port.get_any_name() for port in self._compiled.outputs]
        self._shapes = {p.get_any_name(): p.get_partial_shape() for p in self._compiled.inputs}

    def __call__(self, feeds: Feeds) -> Outputs:
        """Return all outputs by name.

        Raises:
            DataError: the feeds do not fit the model's inputs.
        """
        wanted = {name: value for name, value in feeds.items() if name in self._shapes}
        try:
            for name, value in wanted.items():
                # the plugin itself reads past the end of some, on one core for instance
                if not self._shapes[name].compatible(ov.PartialShape(np.shape(value))):
                    raise ValueError(f"'{name}' takes {self._shapes[name]}")
            results = self._request.infer(wanted)
        except Exception as error:
            shapes = {name: tuple(np.shape(value)) for name, value in feeds.items()}
            raise DataError(f"OpenVINO cannot run on {shapes}: {_reason(error)}") from error
        return {
            name: np.array(value)
            for name, value in zip(self._names, results.to_tuple(), strict=True)
        }

    def beside(self) -> "OpenVinoRunner":
        """Return a runner of the same compiled model that may be called while this one runs."""
        other = copy.copy(self)
        other._request = self._compiled.create_infer_request()
        return other

    def __enter__(self) -> "OpenVinoRunner":
        return self

    def __exit__(self, *_: object) -> None:
        del self._request, self._compiled


def _name_tensors(converted: Any, model: ir.Model) -> None:
    """Give the IR's ports the names of the ONNX graph and no others."""
    for port, value in zip(converted.inputs, model.graph.inputs, strict=True):
        port.get_tensor().set_names({value.name})
    for port, value in zip(converted.outputs, model.graph.outputs, strict=True):
        port.get_tensor().set_names({value.name})


def make_reproducible(path: Path) -> None:
    """Take out of the IR's XML what differs between two runs that convert the same graph.

    That is the record of the conversion, which names the temporary file, and the numbers of
    unnamed layers (`MVN_27`), which count every layer the process has ever made.
    """
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\s*<rt_info>\s*<conversion_parameters>.*?</rt_info>", "", text, flags=re.S)
    text = re.sub(r'<layer id="(\d+)" name="([A-Za-z]+)_\d+"', r'<layer id="\1" name="\2.\1"', text)
    path.write_text(text, encoding="utf-8", newline="\n")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
