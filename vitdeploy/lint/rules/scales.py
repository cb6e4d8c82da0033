"""Rules about scales: values, number and axis, and what TensorRT 8 asks of them."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.surgery import int_attribute, ints_attribute, readers
from vitdeploy.lint.graph import LintGraph
from vitdeploy.lint.qdq import Qdq, has_qdq, is_activation, qdq_at, qdq_nodes, scale_size
from vitdeploy.lint.rule import Finding, Rule, found
from vitdeploy.lint.versions import TensorRT


def _scale_values(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        if not graph.is_static(view.scale):
            yield found(view.node, f"its scale '{view.scale.name}' is computed at run time")
            continue
        array = graph.constant(view.scale)
        if array is None:
            continue
        values = np.asarray(array, np.float64).reshape(-1)
        wrong = values[~(np.isfinite(values) & (values > 0))]
        if wrong.size:
            yield found(view.node, f"{wrong.size} of {values.size} scales are like {wrong[0]:g}")


def _scale_length(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        count, data = scale_size(graph, view), graph.shape(view.data)
        if count in {None, 1} or data is None or len(graph.shape(view.scale) or ()) != 1:
            continue
        if not -len(data) <= view.axis < len(data):
            yield found(view.node, f"its axis, {view.axis}, is none of the {len(data)} of its data")
        elif data[view.axis] not in {count, None}:
            yield found(
                view.node,
                f"{count} scales for {data[view.axis]} channels of axis {view.axis}",
            )
        elif view.written_axis is None and version.parser < (11, 0):
            # 10.1's importer sets a missing axis to the rank and then to 0; RTX 1.7's reads 1.
            yield found(
                view.node,
                "its axis is not written: ONNX means 1, parsers before TensorRT 11 take 0",
                f"write axis = {view.axis}",
            )
        else:
            yield from _product_axis(view, len(data))


def _product_axis(view: Qdq, rank: int) -> Iterator[Finding]:
    """Yield where a weight's scales lie along another axis than its output channels."""
    if not view.dequantizes:
        return
    for node, index, axis in _products(view.node.outputs[0], view.axis % rank):
        wanted = _output_axis(node, rank)
        if index == 1 and wanted is not None and axis != wanted:
            yield found(
                view.node,
                f"its scales run along axis {axis} of the weight of {node.op_type} "
                f"{node.name or ''}, whose output channels are axis {wanted}",
            )


def _products(value: ir.Value, axis: int) -> Iterator[tuple[ir.Node, int, int]]:
    """Yield (reader, input, axis of the scales there), through a Transpose."""
    for node, index in readers(value):
        permutation = ints_attribute(node, "perm") if node.op_type == "Transpose" else None
        if permutation and axis in permutation:
            yield from _products(node.outputs[0], permutation.index(axis))
        else:
            yield node, index, axis


def _output_axis(node: ir.Node, rank: int) -> int | None:
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if int_attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else None


def _channels_of_constants(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        count = scale_size(graph, view)
        follows_q = view.dequantizes and qdq_at(graph, view.data.producer()) is not None
        if count not in {None, 1} and is_activation(graph, view) and not follows_q:
            yield found(view.node, f"{count} scales on '{view.data.name}', which is no constant")


def _explicit_8(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        kind = graph.type_of(view.scale)
        if kind not in {ir.DataType.FLOAT, None}:
            yield found(
                view.node,
                f"its scale is {kind.name}; {version} reads scales as FP32, TensorRT 10.0 takes "
                "FP16 too",
                "give the scale in FP32",
            )
        if view.zero_point is None:
            yield found(
                view.node,
                f"it has no zero point; {version} asks for one, TensorRT 10.0 does not",
                "write a zero point of int8 zeros, as many as scales",
            )


SCALE_VALUES = Rule(
    3,
    "scale-values",
    "error",
    "scales are finite, positive and constant",
    "the parser refuses scales that are not positive; infinite ones give an engine of zeros",
    "calibrate again: a channel of zeros gets scale 1, and below 6e-8 a scale is 0 in FP16; "
    "dynamic quantisation is not for TensorRT",
    has_qdq,
    _scale_values,
)
SCALE_LENGTH = Rule(
    4,
    "scale-length",
    "error",
    "one scale per output channel, along the weight's output axis",
    "only scales of the output channels can be taken out of the product",
    "quantise along axis 0 for Conv and Gemm with transB, along the last for MatMul",
    has_qdq,
    _scale_length,
)
CHANNELS_OF_CONSTANTS = Rule(
    5,
    "per-channel-constants",
    "error",
    "scales per channel on constants alone",
    "an activation's channels are summed over by the product: their scales cannot be taken out",
    "quantise activations with one scale a tensor",
    has_qdq,
    _channels_of_constants,
)
EXPLICIT_8 = Rule(
    17,
    "explicit-for-8",
    "error",
    "FP32 scales and explicit zero points for TensorRT 8",
    "its parser reads any scale as FP32, and fails where the third input is left out",
    "quantise with FP32 scales and zero points written out",
    lambda graph, version: version.parser < (10, 0) and has_qdq(graph),
    _explicit_8,
)
