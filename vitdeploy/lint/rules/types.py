"""Rules about element types: the scale's and its region's (6, 7, 28), 64-bit ones (18)."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.surgery import int_attribute, readers
from vitdeploy.lint.graph import LintGraph, name_of
from vitdeploy.lint.qdq import has_qdq, qdq_nodes
from vitdeploy.lint.rule import Finding, Rule, found
from vitdeploy.lint.versions import TensorRT

_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_SAME_TYPES = frozenset({"MatMul", "Gemm", "Conv", "Add", "Sub", "Mul", "Div"})
"""Operators whose float inputs must be of one type."""
_HALF_SCALE_OPSET = 19


def _scale_type(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        scale = graph.type_of(view.scale)
        if scale is None:
            continue
        if not view.dequantizes:
            data = graph.type_of(view.data)
            if data is not None and data != scale:
                yield found(view.node, f"it quantises {data.name} with a scale of {scale.name}")
            continue
        result = ir.DataType(int_attribute(view.node, "output_dtype", 0)) or scale
        for node, index in readers(view.node.outputs[0]):
            other = _other_float(graph, node, index, result)
            if other is not None:
                yield found(
                    view.node,
                    f"its scale makes {result.name}, and {name_of(node)} reads it "
                    f"beside {other.name}",
                )


def _other_float(
    graph: LintGraph, node: ir.Node, index: int, kind: ir.DataType
) -> ir.DataType | None:
    """Return the float type other than `kind` that `node` reads beside input `index`."""
    if node.op_type not in _SAME_TYPES:
        return None
    for position, value in enumerate(node.inputs):
        other = graph.type_of(value)
        if position != index and other is not None and other != kind and other.is_floating_point():
            return other
    return None


def _half_scale_opset(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        kind = graph.type_of(view.scale)
        if kind is not None and kind in _HALF and graph.opset < _HALF_SCALE_OPSET:
            yield found(view.node, f"a scale of {kind.name} in opset {graph.opset}")


def _half_around_qdq(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    wide = [v for v in qdq_nodes(graph) if graph.type_of(v.scale) == ir.DataType.FLOAT]
    if wide:
        count = sum(1 for _ in qdq_nodes(graph))
        yield found(wide[0].node, f"{len(wide)} of {count} Q/DQ nodes have FP32 scales")


def _wide_types(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    limits = np.iinfo(np.int32)
    for value in graph.constants:
        kind = graph.type_of(value)
        name = f"constant {value.name}"
        if kind == ir.DataType.DOUBLE:
            yield Finding(name, "it is float64, which TensorRT casts to float32")
        if kind != ir.DataType.INT64 or _is_slice_bound(value):
            continue
        array = graph.constant(value)
        if (
            array is not None
            and array.size
            and (array.max() > limits.max or array.min() < limits.min)
        ):
            does = "clamps" if version.parser < (9, 0) else "keeps, in 64-bit arithmetic,"
            yield Finding(name, f"it holds {array.max()}: {version} {does} what int32 cannot hold")
    for value in (*graph.inputs, *graph.model.graph.outputs):
        if graph.type_of(value) == ir.DataType.DOUBLE:
            yield Finding(f"value {value.name}", "it is float64, which TensorRT casts to float32")


def _is_slice_bound(value: ir.Value) -> bool:
    """Return whether a constant is only a start or an end of slices, which are clamped anyway."""
    uses = readers(value)
    return bool(uses) and all(node.op_type == "Slice" and index in {1, 2} for node, index in uses)


SCALE_TYPE = Rule(
    6,
    "scale-type",
    "error",
    "scales have the type of the float region they stand in",
    "the scale's type decides what DequantizeLinear makes; a strongly typed graph with FP16 beside "
    "FP32 is refused",
    "store the scales in the type of the data around them",
    has_qdq,
    _scale_type,
)
HALF_SCALE_OPSET = Rule(
    7,
    "half-scale-opset",
    "error",
    "FP16 scales from opset 19 on",
    "before opset 19 ONNX has FP32 scales alone",
    "export with opset 19 or newer, or keep the scales in FP32",
    has_qdq,
    _half_scale_opset,
)
WIDE_TYPES = Rule(
    18,
    "wide-types",
    "warning",
    "integers within int32, floats no wider than float32",
    "TensorRT computes in 32 bits: what does not fit is clamped or costs casts",
    "store the constant as int32 or float32",
    lambda graph, version: True,
    _wide_types,
)
HALF_AROUND_QDQ = Rule(
    28,
    "half-around-qdq",
    "warning",
    "FP16 around Q/DQ, not FP32",
    "a strongly typed FP32 graph runs in FP32 wherever it is not quantised",
    "convert the float regions and the scales to FP16 (opset 19); a weakly typed build may stay "
    "in FP32, with --fp16 --int8",
    lambda graph, version: version.parser >= (10, 0) and has_qdq(graph),
    _half_around_qdq,
)
