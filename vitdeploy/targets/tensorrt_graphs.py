"""The ONNX graphs that TensorRT gets, for the targets `trt` and `trt-rtx` alike.

The strong graph holds every type itself: FP16, Q/DQ, and FP32 where FP16 would overflow; TensorRT
10 and newer build it strongly typed. The weak graph is FP32 with the same Q/DQ, for 8.x and as
what 10.x falls back to. Building engines is `rtx_builder`'s and the device's.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from vitdeploy.errors import ExportError, UnsupportedError
from vitdeploy.graph.blocks import block_sizes
from vitdeploy.graph.computed_sizes import without_computed_outputs
from vitdeploy.graph.half import half_from_model
from vitdeploy.graph.half_scales import round_scales_
from vitdeploy.graph.narrow import narrow_indices_
from vitdeploy.graph.opset_downgrade import lowered_opset
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.graph.save import PROTOBUF_LIMIT_BYTES, save_model, weights_bytes
from vitdeploy.graph.slice_steps import write_slice_steps_
from vitdeploy.lint.versions import TensorRT, first_taking_opset
from vitdeploy.recipe import INT4_OPSET
from vitdeploy.targets import BuildRequest, Settings
from vitdeploy.targets.overflow import OverflowProbe, probe_overflow

OPSET = 20
PRECISIONS = ("fp32", "fp16", "int8", "w4a16")
MOST_INT8_ATTENTION_TOKENS = 512
"""513 tokens no longer fuse."""
INT8_ATTENTION_HEAD_DIMS = (16, 32, 64, 128)
"""Of 8, 16, 24, 32, 40, 48, 64, 80, 96 and 128 channels, these give one kernel on RTX 1.7."""
LEAST_CONV_CHANNELS = 16
_HALF_SCALES_OPSET = 19


@dataclass(frozen=True)
class TrtGraphs:
    """One part's graphs; at least one of them is there."""

    strong: ir.Model | None
    weak: ir.Model | None
    overflow: OverflowProbe = field(default_factory=lambda: OverflowProbe(0))
    """What FP16's range was checked on; nothing where there is no FP16."""


def quant_scheme() -> QuantScheme:
    """Return symmetric s8 activations and weights, INT8 attention up to 512 tokens.

    TensorRT gains more by INT8 attention than CPUs do, so it may be louder: half of the products'
    noise (1.8 dB), or 36 dB by itself, where the small trained models (ViT, Swin, FastViT) agree
    on 99 % of images.
    """
    return QuantScheme(
        activation=ir.DataType.INT8,
        symmetric_activations=True,
        quantizes_single_rows=False,
        least_conv_channels=LEAST_CONV_CHANNELS,
        splits_qkv=True,
        most_int8_attention_tokens=MOST_INT8_ATTENTION_TOKENS,
        int8_attention_head_dims=INT8_ATTENTION_HEAD_DIMS,
        attention_noise_share=0.5,
        attention_noise_floor=2.5e-4,
    )


def require_precision(target: str, precision: str) -> None:
    """Raise UnsupportedError for what no graph here holds."""
    if precision == "bf16":
        raise UnsupportedError(
            f"target '{target}' has no bf16 graph: TensorRT's fused attention and INT8 kernels "
            "stand between FP16 layers. Use --fp16, where what FP16 cannot hold stays FP32."
        )
    if precision == "w4a8":
        raise UnsupportedError(
            f"target '{target}' has no w4a8: TensorRT dequantises INT4 weights and multiplies in "
            "FP16, so quantised activations would only be rounded and not computed with. Use "
            "--int4 (w4a16), or --int8."
        )
    if precision not in PRECISIONS:
        raise UnsupportedError(
            f"target '{target}' has no precision '{precision}'; it has {', '.join(PRECISIONS)}."
        )


def require_int4(version: TensorRT) -> None:
    """Return where the parser takes INT4 weights.

    Raises:
        UnsupportedError: it documents no opset that has them.
    """
    if version.newest_opset < INT4_OPSET:
        raise UnsupportedError(
            f"{version} reads no INT4 weights: they came with opset {INT4_OPSET}, and its parser "
            f"documents {version.newest_opset}; {first_taking_opset(INT4_OPSET)} is the first that "
            "does. Give the device's version with --trt-version, or use --int8."
        )


def with_planned_sizes(request: BuildRequest) -> BuildRequest:
    """Return the request without the outputs whose size TensorRT cannot plan.

    Raises:
        ExportError: no output would be left.
    """
    return replace(request, model=without_computed_outputs(request.model))


def graphs_from_request(request: BuildRequest, version: TensorRT) -> TrtGraphs:
    """Return the graphs of one part for one version.

    Raises:
        ExportError: the graph has an operator or opset that this version does not take.
        UnsupportedError: the graph has INT4 weights, which this version does not take.
    """
    model = request.model.clone()
    has_int4 = bool(block_sizes(model))
    if has_int4:
        require_int4(version)
    _require_opset(model, version, request.precision)
    round_scales_(model)
    narrow_indices_(model)
    write_slice_steps_(model)
    has_half = request.precision != "fp32" and version.parser >= (10, 0)
    strong: ir.Model | None = None
    probe = OverflowProbe(0)
    if has_half:
        probe = probe_overflow(model, request.images)
        strong = half_from_model(model, probe.float32_nodes)
    elif not version.is_weakly_typed:
        strong = model
    # Weak typing chooses among kernels by type; those with INT4 weights follow the graph alone.
    weak = model if version.is_weakly_typed and not has_int4 else None
    if weak is not None:
        weak = lowered_opset(weak, version.newest_opset, str(version))
    return TrtGraphs(strong, weak, probe)


def save_graphs(graphs: TrtGraphs, request: BuildRequest) -> dict[str, tuple[Path, ...]]:
    """Write `<part>.strong.onnx` and `<part>.weak.onnx`; return the files by kind, strong first.

    Raises:
        ExportError: ONNX's checker refuses a graph.
        DataError: the disk is full or cannot be written.
    """
    files = {}
    for kind, model in (("strong", graphs.strong), ("weak", graphs.weak)):
        if model is not None:
            path = request.folder / f"{request.part}.{kind}.onnx"
            files[kind] = save_model(model, path)
            _require_valid(path, small=weights_bytes(model) <= PROTOBUF_LIMIT_BYTES)
    return files


def overflow_settings(probe: OverflowProbe) -> Settings:
    """Return what the artefact's record says of FP16's range."""
    return {"fp16_probed_images": probe.images, "fp32_nodes": len(probe.float32_nodes)}


def _require_opset(model: ir.Model, version: TensorRT, precision: str) -> None:
    own = int(model.opset_imports.get("", 0))
    if own > max(version.newest_opset, OPSET):
        raise ExportError(
            f"the graph has opset {own}, and {version} takes {version.newest_opset} at most. Use "
            f"--opset {OPSET}; {first_taking_opset(own)} takes {own}."
        )
    if own < _HALF_SCALES_OPSET and precision not in ("fp32", "fp16") and version.parser >= (10, 0):
        raise ExportError(
            f"the graph has opset {own}, and FP16 scales of Q/DQ came with opset "
            f"{_HALF_SCALES_OPSET}. Use --opset {OPSET}."
        )


def _require_valid(path: Path, *, small: bool) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=small)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ExportError(
            f"'{path.name}' is no valid ONNX: {reason}. Report this model."
        ) from error
