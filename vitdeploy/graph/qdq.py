"""Explicit quantisation: Q/DQ pairs on activations, quantised constants on weights.

The numbers (ranges, which sites) come from `compress.int8`; the rules of a runtime come
as a `QuantScheme` from `targets`. Biases stay in float.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.sites import (
    WeightSite,
    add_initializer,
    array_of,
    remove_unused_initializers,
)


@dataclass(frozen=True)
class QuantScheme:
    """What a runtime takes and runs fast."""

    activation: ir.DataType = ir.DataType.UINT8
    symmetric_activations: bool = False
    weight_bits: int = 8
    """7 where the CPU adds pairs of u8 x s8 products in 16 bits, which saturates (no VNNI)."""
    quantizes_conv_outputs: bool = False
    """ONNX Runtime has an INT8 convolution only with a quantised output."""
    pointwise_convs_as_matmul: bool = False
    """Whether 1x1 convolutions are rewritten, so that their output need not be quantised."""
    quantizes_grouped_convs: bool = False
    """Depthwise convolutions do few operations a byte: INT8 makes them slower on CPUs (FastViT-T8
    on OpenVINO: 10.7 ms with them, 6.5 without) and costs accuracy."""
    quantizes_single_rows: bool = True
    """Whether products of one row per image (classifier heads) gain from INT8. ONNX Runtime
    fuses such a MatMul with its bias into a float Gemm before it looks for INT8."""
    least_conv_channels: int = 0
    """Convolutions with fewer input or output channels gain nothing from INT8."""
    splits_qkv: bool = False
    """Whether packed query-key-value layers are split: per-channel scales on a packed weight make
    TensorRT dequantise it."""
    most_int8_attention_tokens: int = 0
    """Attention of at most so many tokens may be INT8 throughout; 0 leaves all attention in float.
    TensorRT has no fused INT8 kernel for more than 512."""
    int8_attention_head_dims: tuple[int, ...] = ()
    """Channels of a head for which it has one; any where empty."""
    packs_attention: bool = False
    """Whether q, k and v of INT8 attention are quantised together, where their one layer gives
    them, in one symmetric range: on OpenVINO three quantisers cost more than INT8 saves."""
    attention_noise_share: float = 0.0
    """INT8 attention may add this share of the noise that the INT8 products make."""
    attention_noise_floor: float = 0.0
    """Or this much, where that is more: squared error relative to the output's squares."""


@dataclass(frozen=True)
class ActivationRange:
    """The real interval an activation's 256 codes span; holds zero."""

    low: float
    high: float

    def parameters(self, scheme: QuantScheme) -> tuple[np.float32, np.integer]:
        """Return (scale, zero point) in the scheme's type.

        Symmetric: scale = max|range| / 127, zero point 0. Asymmetric: 256 codes over
        [low, high], zero exactly representable.
        """
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        unsigned = scheme.activation == ir.DataType.UINT8
        code_type = np.uint8 if unsigned else np.int8
        if scheme.symmetric_activations:
            scale = max(-low, high) / 127.0
            return np.float32(scale or 1.0), code_type(128 if unsigned else 0)
        scale = (high - low) / 255.0 or 1.0
        lowest = 0 if unsigned else -128
        zero_point = int(np.clip(np.round(lowest - low / scale), lowest, lowest + 255))
        return np.float32(scale), code_type(zero_point)


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes and per-output-channel scales of one weight."""

    codes: np.ndarray
    """int8, the weight's shape."""
    scales: np.ndarray
    """float32 (output channels,)."""


def quantize_weight(weight: np.ndarray, output_axis: int, bits: int = 8) -> QuantizedWeight:
    """Return the symmetric per-channel codes of a float32 weight, rounded to nearest.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    if not np.isfinite(weight).all():
        raise ValueError("weight holds NaN or infinity")
    largest_code = 2 ** (bits - 1) - 1
    other_axes = tuple(axis for axis in range(weight.ndim) if axis != output_axis)
    magnitude = np.abs(weight).max(axis=other_axes)
    scales = np.where(magnitude > 0, magnitude / largest_code, 1.0).astype(np.float32)
    # A denormal scale would overflow the division below; such a channel is zero in INT8.
    scales = np.where(scales < np.finfo(np.float32).tiny, np.float32(1.0), scales)
    shape = [1] * weight.ndim
    shape[output_axis] = -1
    codes = np.clip(np.rint(weight / scales.reshape(shape)), -largest_code, largest_code)
    return QuantizedWeight(codes.astype(np.int8), scales)


def insert_qdq_(
    model: ir.Model,
    sites: Iterable[WeightSite],
    ranges: Mapping[str, ActivationRange],
    scheme: QuantScheme,
    weights: Mapping[str, QuantizedWeight] | None = None,
) -> None:
    """Quantise `sites` in place.

    Args:
        model: FP32 graph, opset 19 or newer.
        sites: the products to quantise, found in this very `model`.
        ranges: by name of the activation value; a site's input, and its output where the
            scheme quantises the outputs of convolutions.
        scheme: what the runtime takes.
        weights: by site name, codes chosen by a better rule than rounding to nearest.
    """
    activations: dict[str, ir.Value] = {}
    dequantized: dict[tuple[str, int], ir.Value] = {}
    for site in sites:
        key = str(site.activation.name)
        if key not in activations:
            activations[key] = insert_pair_(
                model, site.activation, ranges[key], scheme, before=site.node
            )
        weight_key = (str(site.weight.name), site.output_axis)
        if weight_key not in dequantized:
            codes = (weights or {}).get(site.name) or quantize_weight(
                array_of(site.weight), site.output_axis, scheme.weight_bits
            )
            dequantized[weight_key] = dequantized_weight(model, site, codes)
        site.node.replace_input_with(0, activations[key])
        site.node.replace_input_with(1, dequantized[weight_key])
        if site.kind == "Conv" and scheme.quantizes_conv_outputs:
            _quantize_output(model, site, ranges, scheme, activations)
    remove_unused_initializers(model)
    model.graph.sort()


def insert_pair_(
    model: ir.Model,
    value: ir.Value,
    interval: ActivationRange,
    scheme: QuantScheme,
    before: ir.Node,
) -> ir.Value:
    """Put Q and DQ after an activation, in graph order before a node; return what DQ gives."""
    scale, zero_point = interval.parameters(scheme)
    name = str(value.name)
    scale_value = add_initializer(model, f"{name}_scale", np.asarray(scale, np.float32))
    zero_value = add_initializer(model, f"{name}_zero_point", np.asarray(zero_point))
    quantize = ir.node(
        "QuantizeLinear", [value, scale_value, zero_value], name=f"{name}/QuantizeLinear"
    )
    quantize.outputs[0].name = f"{name}_quantized"
    dequantize = ir.node(
        "DequantizeLinear",
        [quantize.outputs[0], scale_value, zero_value],
        name=f"{name}/DequantizeLinear",
    )
    dequantize.outputs[0].name = f"{name}_dequantized"
    dequantize.outputs[0].shape = value.shape
    dequantize.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.insert_before(before, [quantize, dequantize])
    return dequantize.outputs[0]


def dequantized_weight(model: ir.Model, site: WeightSite, weight: QuantizedWeight) -> ir.Value:
    """Put DequantizeLinear on the codes before a product; return the float weight it gives."""
    name = str(site.weight.name)
    codes = add_initializer(model, f"{name}_quantized", weight.codes)
    scales = add_initializer(model, f"{name}_scale", weight.scales)
    zeros = add_initializer(model, f"{name}_zero_point", np.zeros(weight.scales.shape, np.int8))
    node = ir.node(
        "DequantizeLinear",
        [codes, scales, zeros],
        attributes={"axis": site.output_axis},
        name=f"{name}/DequantizeLinear",
    )
    node.outputs[0].name = f"{name}_dequantized"
    node.outputs[0].shape = site.weight.shape
    node.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.insert_before(site.node, [node])
    return node.outputs[0]


def _quantize_output(
    model: ir.Model,
    site: WeightSite,
    ranges: Mapping[str, ActivationRange],
    scheme: QuantScheme,
    activations: dict[str, ir.Value],
) -> None:
    output = site.node.outputs[0]
    name = str(output.name)
    consumers = list(output.uses())
    if output in model.graph.outputs or not consumers:
        return
    dequantized = insert_pair_(model, output, ranges[name], scheme, before=consumers[0].node)
    activations[name] = dequantized
    for use in consumers:
        use.node.replace_input_with(use.idx, dequantized)
