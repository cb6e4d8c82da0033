"""What each layout operator does to integer labels, on concrete shapes.

One handler per operator; `layout` walks the graph with them. An operator that computes has a
handler only under a flag of `Through`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vitdeploy.graph.surgery import (
    constant_of,
    int_attribute,
    ints_attribute,
    ints_of,
    scalar_of,
)

Labels = npt.NDArray[np.int32]

ZERO = -1
"""Label of a zero that a Pad put in."""
FOREIGN = -2
"""Label of an element that does not come from the traced value."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Through:
    """Which arithmetic a trace may pass; layout operators always pass."""

    scalars: bool = False
    """Mul or Div by a constant of one element."""
    means: bool = False
    """ReduceMean and global average pooling over axes along which the label is constant."""
    rotary: bool = False
    """Neg, Mul or Div by anything untraced, and Add of traced values: linear in the source."""
    norms: bool = False
    """Normalisation along the last axis: keeps the channel, not the value."""


LAYOUT = Through()


def step(
    node: ir.Node, state: Mapping[ir.Value, Labels], shapes: Shapes, through: Through
) -> list[Labels] | None:
    """Return the labels of the outputs of `node`, or None where its labels cannot pass."""
    inputs = [state.get(value) if value is not None else None for value in node.inputs]
    handler = _LAYOUT.get(node.op_type) or _arithmetic(node, through)
    if handler is None:
        return None
    try:
        return handler(node, inputs, shapes)
    except (KeyError, ValueError, IndexError):
        return None  # a shape that is unknown, or an operator form that has no layout meaning


def _arithmetic(node: ir.Node, through: Through) -> "_Handler | None":
    op = node.op_type
    if op in {"Mul", "Div"} and through.scalars and _scalar_operand(node) is not None:
        return _elementwise
    if op in {"ReduceMean", "GlobalAveragePool"} and through.means:
        return _mean
    if through.rotary and op in {"Mul", "Div", "Neg", "Add", "Sub"}:
        return _elementwise
    if through.norms and op in {"LayerNormalization", "RMSNormalization"}:
        return _same
    return None


def _scalar_operand(node: ir.Node) -> float | None:
    right = scalar_of(node.inputs[1])
    if right is not None or node.op_type == "Div":
        return right
    return scalar_of(node.inputs[0])


_Inputs = list["Labels | None"]
_Handler = Callable[[ir.Node, _Inputs, Shapes], "list[Labels] | None"]


def _same(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    return None if inputs[0] is None else [inputs[0]]


def _reshape(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    if inputs[0] is None:
        return None
    return [inputs[0].reshape(shapes[str(node.outputs[0].name)])]


def _transpose(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    assert inputs[0] is not None
    return [np.transpose(inputs[0], ints_attribute(node, "perm"))]


def _slice(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    bounds = [ints_of(value) for value in node.inputs[1:]]
    if inputs[0] is None or any(b is None for b in bounds[:2]):
        return None
    starts, ends = bounds[0] or [], bounds[1] or []
    axes = bounds[2] if len(bounds) > 2 and bounds[2] else list(range(len(starts)))
    steps = bounds[3] if len(bounds) > 3 and bounds[3] else [1] * len(starts)
    view = inputs[0]
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        picked: list[slice] = [slice(None)] * view.ndim
        stop = None if end >= 2**31 or (stride < 0 and end < -(2**31)) else end
        picked[axis] = slice(start, stop, stride)
        view = view[tuple(picked)]
    return [view]


def _split(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    assert inputs[0] is not None
    axis = int_attribute(node, "axis", 0)
    sizes = [shapes[str(value.name)][axis] for value in node.outputs]
    return [np.asarray(x) for x in np.split(inputs[0], np.cumsum(sizes)[:-1], axis=axis)]


def _concat(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    parts = []
    for value, labels in zip(node.inputs, inputs, strict=True):
        if labels is None:
            shape = shapes[str(value.name)] if value is not None else ()
            labels = np.full(shape, FOREIGN, dtype=np.int32)  # noqa: PLW2901
        parts.append(labels)
    return [np.concatenate(parts, axis=int_attribute(node, "axis", 0))]


def _pad(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    mode = node.attributes.get("mode")
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    pads = ints_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if inputs[0] is None or pads is None or (mode is not None and mode.as_string() != "constant"):
        return None
    if (fill is not None and scalar_of(fill) != 0.0) or len(node.inputs) > 3:
        return None
    rank = inputs[0].ndim
    if min(pads) < 0 or len(pads) != 2 * rank:
        return None
    widths = list(zip(pads[:rank], pads[rank:], strict=True))
    return [np.pad(inputs[0], widths, constant_values=ZERO)]


def _gather(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    indices = constant_of(node.inputs[1])
    if inputs[0] is None or indices is None:
        return None
    return [np.take(inputs[0], indices.astype(np.int64), axis=int_attribute(node, "axis", 0))]


def _expand(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    assert inputs[0] is not None
    return [np.broadcast_to(inputs[0], shapes[str(node.outputs[0].name)])]


def _mean(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    labels = inputs[0]
    if labels is None:
        return None
    axes = _mean_axes(node, labels.ndim)
    if axes is None or labels.min() < 0:
        return None
    first = labels
    for axis in axes:
        first = np.take(first, [0], axis=axis)
    if not np.array_equal(np.broadcast_to(first, labels.shape), labels):
        return None
    return [first.reshape(shapes[str(node.outputs[0].name)])]


def _mean_axes(node: ir.Node, rank: int) -> list[int] | None:
    if node.op_type == "GlobalAveragePool":
        return list(range(2, rank))
    axes = ints_attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = ints_of(node.inputs[1])
    return None if axes is None else [axis % rank for axis in axes]


def _elementwise(node: ir.Node, inputs: _Inputs, shapes: Shapes) -> list[Labels] | None:
    known = [labels for labels in inputs if labels is not None]
    if len(known) != (2 if node.op_type in {"Add", "Sub"} else 1):
        return None
    if node.op_type == "Div" and inputs[0] is None:
        return None
    shape = shapes[str(node.outputs[0].name)]
    return [np.broadcast_to(known[0], shape)]


_LAYOUT: dict[str, _Handler] = {
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Identity": _same,
    "Dropout": _same,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Pad": _pad,
    "Gather": _gather,
    "Expand": _expand,
}
LAYOUT_OPS = frozenset(_LAYOUT)
"""Operators that move elements and compute nothing."""
