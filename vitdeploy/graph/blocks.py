"""Weights that are stored in few bits and computed with in float: DequantizeLinear on a constant.

INT4 codes come in blocks along the input channels, each with a scale of its own (opset 21); INT8
codes have one scale an output channel. ONNX Runtime fuses both with the product behind them into
MatMulNBits, OpenVINO into FullyConnectedCompressed, TensorRT dequantises INT4 inside its GEMM.
Which codes, and which products, is decided in `compress.int4`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.qdq import QuantizedWeight, dequantized_weight
from vitdeploy.graph.sites import (
    WeightSite,
    add_initializer,
    find_weight_sites,
    remove_unused_initializers,
)
from vitdeploy.graph.surgery import constant_of, insert_after_, new_constant_

LEAST_BLOCK = 16
"""The smallest that ONNX Runtime's MatMulNBits takes."""
_UNSIGNED_SHIFT = 8


@dataclass(frozen=True)
class BlockedWeight:
    """Codes of one weight (in, out), and what they stand for: (code - zero) * scale."""

    codes: np.ndarray
    """(in, out) int8, -8..7."""
    scales: np.ndarray
    """(blocks, out) float32 that FP16 holds exactly."""
    zeros: np.ndarray | None = None
    """(blocks, out) int8, -8..7; None where 0 stands for 0."""

    @property
    def block_size(self) -> int:
        """Input channels that share a scale."""
        return len(self.codes) // len(self.scales)

    def dequantized(self) -> np.ndarray:
        """Return the weight (in, out) float32 that the codes stand for."""
        size = self.block_size
        zeros = 0 if self.zeros is None else np.repeat(self.zeros, size, axis=0)
        codes = self.codes.astype(np.float32) - zeros
        return np.asarray(codes * np.repeat(self.scales, size, axis=0), np.float32)


def block_of(channels: int, wanted: int) -> int | None:
    """Return the largest of `wanted`, its half, ... 16 that divides `channels`, or None."""
    size = wanted
    while size >= LEAST_BLOCK:
        if channels % size == 0:
            return size
        size //= 2
    return None


def insert_weights_(
    model: ir.Model, weights: Mapping[str, BlockedWeight | QuantizedWeight]
) -> None:
    """Give products their stored weights, in place.

    Args:
        model: FP32 graph of opset 21 or newer.
        weights: by site name; INT4 for MatMul alone.
    """
    for site in find_weight_sites(model):
        weight = weights.get(site.name)
        if weight is None:
            continue
        if isinstance(weight, BlockedWeight):
            stored = _blocked(model, site, weight)
        else:
            stored = dequantized_weight(model, site, weight)
        site.node.replace_input_with(1, stored)
    remove_unused_initializers(model)


def half_weights_(model: ir.Model) -> int:
    """Dequantise constant weights to FP16, with a Cast behind, in place; return how many.

    The scales take half their size, and are the same numbers, for they were chosen so. OpenVINO
    reads the pair as it reads the weights that NNCF compresses.
    """
    changed = _with_half_scales(model)
    for node, half in changed:
        node.replace_input_with(1, new_constant_(model.graph, f"{node.inputs[1].name}_half", half))
        output = node.outputs[0]
        cast = _cast_to_float(output, f"{node.name}/Cast")
        insert_after_(output, cast)
        cast.outputs[0].name = f"{output.name}_float"
        output.type = ir.TensorType(ir.DataType.FLOAT16)
    remove_unused_initializers(model)
    return len(changed)


def half_scales_(model: ir.Model) -> int:
    """Store the scales of constant weights in FP16, each with a Cast, in place; return how many.

    Half their size, and the same numbers to the bit. ONNX Runtime folds the Cast when it loads the
    file, and then fuses as ever; it does not where weights are dequantised to FP16.
    """
    changed = _with_half_scales(model)
    for node, half in changed:
        stored = new_constant_(model.graph, f"{node.inputs[1].name}_half", half)
        cast = _cast_to_float(stored, f"{node.name}/Cast")
        model.graph.insert_before(node, cast)
        cast.outputs[0].name = f"{stored.name}_float"
        node.replace_input_with(1, cast.outputs[0])
    remove_unused_initializers(model)
    return len(changed)


def has_blocks(model: ir.Model) -> bool:
    """Return whether the graph has INT4 weights."""
    return bool(block_sizes(model))


def block_sizes(model: ir.Model) -> tuple[int, ...]:
    """Return the sizes of the blocks of INT4 weights, ascending, each once."""
    found = {
        node.attributes.get_int("block_size", 0)
        for node in model.graph
        if node.op_type == "DequantizeLinear" and "block_size" in node.attributes
    }
    return tuple(sorted(found - {0}))


def _with_half_scales(model: ir.Model) -> list[tuple[ir.Node, np.ndarray]]:
    """Return what dequantises constant weights by FP32 scales that FP16 holds, and these."""
    found = []
    for node in model.graph:
        if node.op_type != "DequantizeLinear" or not _is_stored_weight(node):
            continue
        scales = constant_of(node.inputs[1])
        half = np.asarray(scales, np.float16)
        if scales is not None and scales.dtype == np.float32 and np.array_equal(half, scales):
            found.append((node, half))
    return found


def _cast_to_float(value: ir.Value, name: str) -> ir.Node:
    node = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT.value}, name=name)
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node


def _is_stored_weight(node: ir.Node) -> bool:
    data = node.inputs[0]
    return data is not None and data.const_value is not None and not data.is_graph_input()


def _blocked(model: ir.Model, site: WeightSite, weight: BlockedWeight) -> ir.Value:
    name = str(site.weight.name)
    signed = weight.zeros is None
    shift = 0 if signed else _UNSIGNED_SHIFT
    dtype = (ir.DataType.INT4 if signed else ir.DataType.UINT4).numpy()
    inputs = [
        add_initializer(model, f"{name}_int4", (weight.codes + shift).astype(dtype)),
        add_initializer(model, f"{name}_scale", weight.scales),
    ]
    if weight.zeros is not None:
        zeros = (weight.zeros + shift).astype(dtype)
        inputs.append(add_initializer(model, f"{name}_zero_point", zeros))
    node = ir.node(
        "DequantizeLinear",
        inputs,
        attributes={"axis": site.input_axis, "block_size": weight.block_size},
        name=f"{name}/DequantizeLinear",
    )
    output = node.outputs[0]
    output.name, output.shape = f"{name}_dequantized", site.weight.shape
    output.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(site.node, [node])
    return output
