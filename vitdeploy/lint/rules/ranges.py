"""The rule about FP16's range: LayerNormalization (20)."""

from collections.abc import Iterator

import onnx_ir as ir

from vitdeploy.graph.surgery import readers, scalar_of
from vitdeploy.lint.graph import LintGraph, input_of
from vitdeploy.lint.rule import Finding, Rule, found
from vitdeploy.lint.versions import TensorRT

_LARGEST = 512
"""The sum of 256 squares of it no longer fits FP16, whose largest number is 65504."""
_NORMS = ("LayerNormalization", "RMSNormalization")


def _applies(graph: LintGraph, _version: TensorRT) -> bool:
    return graph.has(*_NORMS) or any(_written_out(graph))


def _written_out(graph: LintGraph) -> Iterator[ir.Node]:
    """Yield the ReduceMean of squares of norms that are written out as single operators."""
    for node in graph.of("ReduceMean"):
        square = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        if square is not None and _is_square(square) and _leads_to_root(node):
            yield node


def _is_square(node: ir.Node) -> bool:
    first, second = input_of(node, 0), input_of(node, 1)
    if node.op_type == "Mul":
        return first is second
    return node.op_type == "Pow" and scalar_of(second) == 2.0


def _leads_to_root(node: ir.Node) -> bool:
    added = [n for n, _ in readers(node.outputs[0]) if n.op_type == "Add"]
    return any(n.op_type == "Sqrt" for add in added for n, _ in readers(add.outputs[0]))


def _layernorm_range(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    for node in graph.of(*_NORMS):
        value = input_of(node, 0)
        largest = graph.known.largest.get(str(value.name)) if value is not None else None
        is_half = graph.type_of(value) == ir.DataType.FLOAT16
        if largest is None and is_half:
            yield found(node, f"it runs in FP16, and whether its input stays below {_LARGEST} "
                        "cannot be told from the file")  # fmt: skip
        elif largest is not None and largest > _LARGEST and (is_half or version.is_weakly_typed):
            runs = "it runs in FP16" if is_half else "it runs in FP16 if built with --fp16"
            yield found(node, f"{runs}, and its input reaches {largest:.0f}")
    for node in _written_out(graph):
        is_half = graph.type_of(node.inputs[0]) == ir.DataType.FLOAT16
        if is_half or version.is_weakly_typed:
            runs = "squares in FP16" if is_half else "squares in FP16 if built with --fp16"
            yield found(
                node,
                f"a norm that is written out {runs}",
                "export with opset 17 or newer, so that LayerNormalization is one operator",
            )


LAYERNORM_RANGE = Rule(
    20,
    "layernorm-range",
    "warning",
    f"LayerNormalization of inputs beyond {_LARGEST} in FP32",
    "its squares leave FP16's range: the output is wrong or NaN, and the build passes",
    "run the norm in FP32, with Casts around it",
    _applies,
    _layernorm_range,
)
