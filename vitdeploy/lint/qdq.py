"""QuantizeLinear and DequantizeLinear as the rules read them; no rule lives here."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from vitdeploy.graph.surgery import int_attribute
from vitdeploy.lint.graph import Dims, LintGraph, input_of

INT4 = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
FP8 = frozenset(
    {
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
    }
)
LAYOUT = frozenset(
    {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity", "Cast"}
    | {"Expand", "Flatten", "Gather", "Concat"}
)
"""Operators that move elements and leave them as they are."""


@dataclass(frozen=True, eq=False)
class Qdq:
    """One node of either kind."""

    node: ir.Node
    data: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    codes: ir.DataType | None
    """Type of the quantised side; None where the file does not say."""

    @property
    def dequantizes(self) -> bool:
        """Whether this is a DequantizeLinear."""
        return str(self.node.op_type) == "DequantizeLinear"

    @property
    def written_axis(self) -> int | None:
        """The attribute `axis`, None where it is left out."""
        return int_attribute(self.node, "axis", 0) if "axis" in self.node.attributes else None

    @property
    def axis(self) -> int:
        """The axis of the scales; ONNX's default is 1."""
        written = self.written_axis
        return 1 if written is None else written


def qdq_nodes(graph: LintGraph) -> Iterator[Qdq]:
    """Yield all Q/DQ nodes that have data and a scale (`onnx.checker` tells of others)."""
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        view = qdq_at(graph, node)
        if view is not None:
            yield view


def qdq_at(graph: LintGraph, node: ir.Node | None) -> Qdq | None:
    """Return the view of `node` where it is a Q/DQ node."""
    if node is None or node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
        return None
    data, scale, zero = (input_of(node, index) for index in range(3))
    if data is None or scale is None:
        return None
    return Qdq(node, data, scale, zero, _codes(graph, node, data, zero))


def has_qdq(graph: LintGraph, _version: object = None) -> bool:
    """Return whether the graph has a Q/DQ node."""
    return graph.has("QuantizeLinear", "DequantizeLinear")


def scale_size(graph: LintGraph, view: Qdq) -> int | None:
    """Return how many scales a node has, None where their shape is not fixed."""
    shape = graph.shape(view.scale)
    return None if shape is None else _elements(shape)


def dequantized_by(
    graph: LintGraph, value: ir.Value | None, through: frozenset[str] = frozenset()
) -> Qdq | None:
    """Return the DequantizeLinear that makes `value`, behind operators of `through` if need be."""
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        view = qdq_at(graph, node)
        if view is not None:
            return view if view.dequantizes else None
        if node.op_type not in through or not node.inputs:
            return None
        value = node.inputs[0]
    return None


def is_activation(graph: LintGraph, view: Qdq | None) -> bool:
    """Return whether a node's data depends on an input."""
    return view is not None and not graph.is_static(view.data)


def _codes(
    graph: LintGraph, node: ir.Node, data: ir.Value, zero: ir.Value | None
) -> ir.DataType | None:
    if zero is not None:
        return graph.type_of(zero)
    if node.op_type == "DequantizeLinear":
        made_by = qdq_at(graph, data.producer())
        return made_by.codes if made_by else graph.type_of(data)
    asked = int_attribute(node, "output_dtype", 0)
    return ir.DataType(asked) if asked else ir.DataType.UINT8


def _elements(shape: Dims) -> int | None:
    sizes = [size for size in shape if size is not None]
    return prod(sizes) if len(sizes) == len(shape) else None
