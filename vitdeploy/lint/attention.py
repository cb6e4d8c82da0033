"""Recognises attention in any graph, quantised or not, from its Softmax.

`vitdeploy.graph.attention` describes the sites of our own float graphs to the channel; here Q/DQ
may stand anywhere and shapes may be missing, and only the two products and their operands matter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.surgery import readers
from vitdeploy.lint.graph import LintGraph
from vitdeploy.lint.qdq import LAYOUT, dequantized_by, is_activation

_ABOVE = frozenset({"Add", "Sub", "Mul", "Div", "Where"}) | LAYOUT | {"QuantizeLinear"}
_ABOVE = _ABOVE | {"DequantizeLinear"}
_BELOW = LAYOUT | {"QuantizeLinear", "DequantizeLinear", "Dropout", "Where"}
_TO_LAYER = _ABOVE | {"LayerNormalization", "RMSNormalization", "LpNormalization", "Pow", "Sqrt"}
_TO_LAYER = _TO_LAYER | {"ReduceMean", "ReduceSum", "ReduceL2", "Neg", "Clip", "Max"}
_LIMIT = 200
"""Nodes after which a search gives up: far more than lie within one attention."""


@dataclass(frozen=True, eq=False)
class Attention:
    """The two products around a Softmax."""

    softmax: ir.Node
    operands: Mapping[str, ir.Value]
    """What the products read: `q`, `k`, `softmax output`, `v`."""
    biases: tuple[ir.Value, ...]
    """What is added to the scores."""
    quantized: tuple[str, ...]
    """The operands that come from a DequantizeLinear."""
    tokens: int | None
    """Keys in a row of the softmax; None where not fixed."""


def attentions(graph: LintGraph) -> Iterator[Attention]:
    """Yield the attentions of a graph."""
    for softmax in graph.of("Softmax"):
        scores, biases = _scores(graph, softmax)
        context = _context(graph, softmax)
        if scores is None or context is None:
            continue
        operands = {
            "q": scores.inputs[0],
            "k": scores.inputs[1],
            "softmax output": context.inputs[0],
            "v": context.inputs[1],
        }
        held = {name: value for name, value in operands.items() if value is not None}
        quantized = tuple(
            name
            for name, value in held.items()
            if is_activation(graph, dequantized_by(graph, value, LAYOUT))
        )
        shape = graph.shape(softmax.outputs[0]) or graph.shape(softmax.inputs[0])
        yield Attention(softmax, held, biases, quantized, shape[-1] if shape else None)


def layer_above(graph: LintGraph, value: ir.Value) -> ir.Node | None:
    """Return the nearest product with a constant weight above `value`, or None."""
    for node in _upwards(graph, value, _TO_LAYER):
        if node.op_type in {"MatMul", "Gemm"} and graph.is_static(node.inputs[1]):
            return node
    return None


def _scores(graph: LintGraph, softmax: ir.Node) -> tuple[ir.Node | None, tuple[ir.Value, ...]]:
    """Return the query-key product above a Softmax, and what is added in between."""
    if not softmax.inputs or softmax.inputs[0] is None:
        return None, ()
    passed: list[ir.Node] = []
    for node in _upwards(graph, softmax.inputs[0], _ABOVE):
        if node.op_type == "MatMul" and not any(graph.is_static(v) for v in node.inputs):
            biases = [bias for add in passed if (bias := _bias(graph, add, node)) is not None]
            return node, tuple(biases)
        if node.op_type in {"Add", "Sub"}:
            passed.append(node)
    return None, ()


def _bias(graph: LintGraph, add: ir.Node, product: ir.Node) -> ir.Value | None:
    """Return the input of `add` that does not come from `product`."""
    others = [
        value
        for value in add.inputs
        if value is not None and product not in _upwards(graph, value, _ABOVE)
    ]
    return others[0] if len(others) == 1 else None


def _context(graph: LintGraph, softmax: ir.Node) -> ir.Node | None:
    """Return the product of the softmax's output with v."""
    stack, seen = [softmax.outputs[0]], set[ir.Node]()
    while stack and len(seen) < _LIMIT:
        value = stack.pop()
        for user, index in readers(value):
            if user.op_type == "MatMul" and index == 0:
                return None if graph.is_static(user.inputs[1]) else user
            if user.op_type in _BELOW and user not in seen:
                seen.add(user)
                stack += user.outputs
    return None


def _upwards(graph: LintGraph, value: ir.Value, through: frozenset[str]) -> Iterator[ir.Node]:
    """Yield the nodes above `value` nearest first; those of `through` are passed."""
    queue, seen = [value.producer()], set[ir.Node]()
    while queue and len(seen) < _LIMIT:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if node.op_type in through:
            queue += [v.producer() for v in node.inputs if v is not None and v not in graph.static]
