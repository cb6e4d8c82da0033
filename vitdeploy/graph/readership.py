"""Who reads the channels of a value, and whether all of them can absorb a change of it.

The folds ask here before they edit: a scale or shift of a value is exact only where every reader
is a layer that can take the inverse into its weights.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import AttentionGraphSite, Role
from vitdeploy.graph.layout import Sink, Trace, channel_labels, channel_map, trace
from vitdeploy.graph.layout_ops import FOREIGN, ZERO, Labels, Shapes, Through
from vitdeploy.graph.linear import (
    Linear,
    is_padded,
    linear_at,
    scale_inputs_,
    shift_inputs_,
)
from vitdeploy.graph.surgery import Float64


@dataclass(frozen=True, eq=False)
class Readership:
    """The layers that read a value."""

    layers: tuple[tuple[Linear, Labels], ...]
    """Each layer, and the channel of the value that each of its input channels holds."""
    reason: str | None
    """Why a scale cannot move into the readers, or None where it can."""
    shift_reason: str | None
    """Why a shift cannot, or None where it can (where a scale can)."""


def absorbers(model: ir.Model, value: ir.Value, shapes: Shapes, axis: int = -1) -> Readership:
    """Return the layers that read `value` and whether they can absorb a scale or shift of it.

    Args:
        model: The model.
        value: The value whose channels lie on `axis`.
        shapes: `concrete_shapes(model)`.
        axis: Axis of the channels in `value`.

    Returns:
        The readership; `layers` is complete only where `reason` is None.
    """
    shape = shapes.get(str(value.name))
    if shape is None:
        return Readership((), f"the shape of {value.name} is unknown", None)
    labels = channel_labels(shape, axis)
    found = trace(model.graph, value, labels, shapes, Through(means=True))
    if found.outputs:
        return Readership((), f"it is part of the graph output {found.outputs[0].name}", None)
    layers, shift_reason = [], None
    for sink in found.sinks:
        linear = linear_at(sink.node)
        reason = _cannot_scale(linear, sink)
        if linear is None or reason is not None:
            return Readership((), f"{sink.node.op_type} {sink.node.name} {reason}", None)
        channels = channel_map(sink.labels, linear.channel_axis)
        if channels is None:
            return Readership((), f"{linear.name} reads several channels as one", None)
        if is_padded(linear) or sink.labels.min() == ZERO:
            shift_reason = f"{linear.name} also reads zero padding, which a shift would not reach"
        layers.append((linear, channels))
    if not layers:
        return Readership((), "nothing reads it", None)
    return Readership(tuple(layers), None, shift_reason)


def _cannot_scale(linear: Linear | None, sink: Sink) -> str | None:
    if linear is None or sink.index != 0:
        return "reads it and is no layer with weights"
    if linear.group != 1:
        return "reads it channel by channel"
    if sink.labels.min() <= FOREIGN:
        return "reads it together with something else"
    return None


def absorb_(graph: ir.Graph, found: Readership, factor: Float64, shift: Float64 | None) -> None:
    """Let the layers read v as if it were factor * v + shift, both by channel of the value."""
    for linear, channels in found.layers:
        if shift is not None and np.any(shift):
            shift_inputs_(graph, linear, shift[channels])
        scale_inputs_(graph, linear, factor[channels])


def trace_role(
    model: ir.Model, site: AttentionGraphSite, role: Role, shapes: Shapes, through: Through
) -> Trace | str:
    """Return the trace of the columns of `role`, or why others than its product read them.

    Labels are flat positions in `columns` (head * head_dim + channel); the rest is `FOREIGN`.
    """
    projection = site.projections[role]
    linear = projection.linear
    shape = shapes.get(str(linear.output.name))
    if shape is None:
        return f"the shape of {linear.name} is unknown"
    numbers = np.full(linear.out_channels, FOREIGN, dtype=np.int32)
    numbers[projection.flat] = np.arange(projection.columns.size, dtype=np.int32)
    labels = numbers[channel_labels(shape, linear.channel_axis)]
    found = trace(model.graph, linear.output, labels, shapes, through)
    if found.outputs:
        return f"{linear.name} is part of the graph output {found.outputs[0].name}"
    product = site.context_matmul if role == "value" else site.score_matmul
    index = 0 if role == "query" else 1
    arrived = False
    for sink in found.sinks:
        if sink.node is product and sink.index == index:
            arrived = True
        elif sink.labels.max() >= 0:
            return f"{sink.node.op_type} {sink.node.name} reads the {role} too"
    return found if arrived else f"the {role} does not reach its product unchanged"
