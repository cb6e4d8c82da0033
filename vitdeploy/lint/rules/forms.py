"""Forms of supported operators, and element types, that no importer takes: part of rule 12.

From the restrictions in the parser's operator list, and asked of TensorRT for RTX's parser.
"""

from collections.abc import Iterator

import onnx_ir as ir

from vitdeploy.graph.surgery import float_attribute, int_attribute, ints_attribute
from vitdeploy.lint.graph import LintGraph, input_of
from vitdeploy.lint.rule import Finding, found
from vitdeploy.lint.versions import TensorRT

_NO_TYPES = frozenset(
    {ir.DataType.STRING, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.UINT32}
    | {ir.DataType.UINT64, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128}
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
_AXES_INPUT = (*_REDUCTIONS, "Squeeze", "Unsqueeze")
_FLAT_ATTENTION = (11, 0)
_POOLS = ("AveragePool", "MaxPool", "LpPool")


def unsupported_forms(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    """Yield the nodes and values that the parser of `version` does not take as they are."""
    yield from _types(graph)
    for node in graph.of(*_AXES_INPUT):
        axes = input_of(node, 1)
        if axes is not None and not graph.is_static(axes):
            yield found(node, f"its axes '{axes.name}' are computed at run time")
    for node in graph.of(*_POOLS):
        if any(step != 1 for step in ints_attribute(node, "dilations") or ()):
            yield found(node, "it is dilated; pools are taken without dilations alone")
        if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].name:
            yield found(node, f"it makes the indices '{node.outputs[1].name}' too")
    for node in graph.of("BatchNormalization"):
        if int_attribute(node, "training_mode", 0):
            yield found(node, "it is in training mode", "export the model in eval mode")
    for node in graph.of("Attention"):
        yield from _attention(graph, node, version)


def _types(graph: LintGraph) -> Iterator[Finding]:
    """Yield inputs, constants and casts of types that TensorRT does not have."""
    for value in (*graph.inputs, *graph.constants):
        kind = graph.type_of(value)
        if kind is not None and kind in _NO_TYPES:
            yield Finding(f"value {value.name}", f"TensorRT has no type {kind.name}")
    for node in graph.of("Cast"):
        kind = ir.DataType(int_attribute(node, "to", 1))
        if kind in _NO_TYPES:
            yield found(node, f"it casts to {kind.name}, a type that TensorRT does not have")


def _attention(graph: LintGraph, node: ir.Node, version: TensorRT) -> Iterator[Finding]:
    ranks = [graph.shape(input_of(node, index)) for index in range(3)]
    flat = any(shape is not None and len(shape) != 4 for shape in ranks)
    if flat and version.parser < _FLAT_ATTENTION:
        yield found(node, "q, k and v are not (batch, heads, tokens, channels)")
    if any(value is not None for value in node.inputs[4:6]):
        yield found(node, "it reads past keys or values")
    if any(value.name for value in node.outputs[1:]):
        yield found(node, "it makes present keys, values or scores too")
    if float_attribute(node, "softcap", 0.0):
        yield found(node, "it caps the scores (softcap)")
