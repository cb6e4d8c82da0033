"""Finds the residual streams of a graph: who writes each, who reads it, and what stands in the way.

A stream is everything that residual Adds and layout operators tie together. `rotation` turns a
whole stream; nothing is edited here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.layout import channel_labels, concrete_shapes
from vitdeploy.graph.layout_ops import FOREIGN, LAYOUT_OPS, Labels, Shapes, Through, step
from vitdeploy.graph.linear import Linear, linear_at, linear_of
from vitdeploy.graph.readership import Readership, absorbers
from vitdeploy.graph.surgery import constant_of, readers

_STEP = Through(means=True)
_MOVES = LAYOUT_OPS | {"ReduceMean", "GlobalAveragePool"}


@dataclass(frozen=True)
class Place:
    """Where the channels lie in a value."""

    axis: int
    """Axis of the channels, counted from the left."""
    blocks: int
    """How many runs of all channels stand side by side on the axis (4 behind a patch merging)."""


@dataclass(frozen=True)
class Table:
    """A constant that is added to or joined with the stream: a position embedding, a token."""

    node: ir.Node
    index: int
    axis: int


@dataclass(frozen=True, eq=False)
class NormReader:
    """A LayerNormalization that reads the stream."""

    norm: ir.Node
    blocks: int
    readers: Readership


@dataclass(eq=False)
class Stream:
    """One residual stream."""

    channels: int
    places: dict[ir.Value, Place] = field(default_factory=dict)
    writers: list[Linear] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    norm_writers: list[ir.Node] = field(default_factory=list)
    """LayerNormalizations whose result is the stream."""
    norms: list[NormReader] = field(default_factory=list)
    layers: list[tuple[Linear, int]] = field(default_factory=list)
    """Layers that read the stream without a norm, and the number of blocks they read."""
    outputs: list[ir.Value] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the first norm that reads the stream."""
        return str(self.norms[0].norm.name) if self.norms else "no norm"


def find_streams(model: ir.Model) -> list[Stream]:
    """Return the residual streams that a LayerNormalization reads, in graph order."""
    shapes = concrete_shapes(model)
    streams: list[Stream] = []
    seen: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type != "LayerNormalization" or node.inputs[0] in seen:
            continue
        value = node.inputs[0]
        shape = shapes.get(str(value.name))
        if shape is None:
            continue
        stream = Stream(channels=shape[-1])
        _explore(model, stream, value, shapes)
        seen |= set(stream.places)
        streams.append(stream)
    return streams


def _explore(model: ir.Model, stream: Stream, start: ir.Value, shapes: Shapes) -> None:
    rank = len(shapes[str(start.name)])
    stack = [(start, Place(rank - 1, 1))]
    while stack:
        value, place = stack.pop()
        known = stream.places.get(value)
        if known is not None:
            if known != place:
                stream.obstacles.append(f"{value.name} holds the channels in two orders")
            continue
        stream.places[value] = place
        if not _is_known(value, shapes):
            stream.obstacles.append(f"the shapes around {value.name} are unknown")
            continue
        stack.extend(_joined_above(stream, value, place, shapes))
        stack.extend(_joined_below(model, stream, value, place, shapes))
        if value.is_graph_output():
            stream.outputs.append(value)


def _is_known(value: ir.Value, shapes: Shapes) -> bool:
    """Whether the shapes of `value` and of what its readers make of it are known."""
    made = [out for node, _ in readers(value) for out in node.outputs]
    return all(str(v.name) in shapes for v in (value, *made))


_Joined = Iterator[tuple[ir.Value, Place]]


def _joined_above(stream: Stream, value: ir.Value, place: Place, shapes: Shapes) -> _Joined:
    """Record what writes `value` and yield the inputs of its producer that are the stream too."""
    node = value.producer()
    linear = linear_of(value)
    if linear is not None:
        _record_writer(stream, linear, place, shapes[str(value.name)])
    elif node is None:
        stream.obstacles.append(f"the graph input {value.name} writes the stream")
    elif node.op_type == "LayerNormalization":
        stream.norm_writers.append(node)
    elif node.op_type == "Add":
        yield from _joined_operands(stream, node, place, shapes)
    elif node.op_type in _MOVES:
        yield from _joined_inputs(stream, node, value, place, shapes)
    else:
        stream.obstacles.append(f"{node.op_type} {node.name} writes the stream")


def _record_writer(stream: Stream, linear: Linear, place: Place, shape: tuple[int, ...]) -> None:
    if place != Place(linear.channel_axis % len(shape), 1) or linear.group != 1:
        stream.obstacles.append(f"{linear.name} writes the stream channel by channel or in parts")
    else:
        stream.writers.append(linear)


def _joined_operands(stream: Stream, node: ir.Node, place: Place, shapes: Shapes) -> _Joined:
    rank = len(shapes[str(node.outputs[0].name)])
    for index, operand in enumerate(node.inputs):
        shape = shapes.get(str(operand.name), ())
        axis = place.axis - (rank - len(shape))
        if axis < 0 or shape[axis] != stream.channels * place.blocks:
            stream.obstacles.append(f"{node.name} adds a value without the stream's channels")
        elif constant_of(operand) is None:
            yield operand, Place(axis, place.blocks)
        elif place.blocks == 1:
            stream.tables.append(Table(node, index, axis))
        else:
            stream.obstacles.append(f"{node.name} adds a table to joined channels")


def _joined_inputs(
    stream: Stream, node: ir.Node, value: ir.Value, place: Place, shapes: Shapes
) -> _Joined:
    """Find the channels in the inputs of a layout operator from those in its output `value`."""
    position = list(node.outputs).index(value)
    for index, data in enumerate(node.inputs):
        if data is None or (index > 0 and node.op_type != "Concat"):
            continue
        found = _place_above(stream.channels, node, index, position, place, shapes)
        if found is None:
            stream.obstacles.append(f"{node.op_type} {node.name} mixes the channels of the stream")
        elif constant_of(data) is None:
            yield data, found
        elif found.blocks == 1:
            stream.tables.append(Table(node, index, found.axis))
        else:
            stream.obstacles.append(f"{node.name} joins a table to joined channels")


def _place_above(
    channels: int, node: ir.Node, index: int, position: int, place: Place, shapes: Shapes
) -> Place | None:
    data = node.inputs[index]
    shape = shapes.get(str(data.name), ())
    for axis in reversed(range(len(shape))):
        if shape[axis] % channels:
            continue
        labels = _labels(shape, axis, channels)
        made = step(node, {data: labels}, shapes, _STEP)
        if made is not None and _matches(made[position], place, channels):
            return Place(axis, shape[axis] // channels)
    return None


def _labels(shape: tuple[int, ...], axis: int, channels: int) -> Labels:
    return channel_labels(shape, axis) % channels


def _matches(labels: Labels, place: Place, channels: int) -> bool:
    """Whether `labels` are those of `place`, elements from elsewhere and zeros aside."""
    if labels.shape[place.axis] != channels * place.blocks:
        return False
    wanted = _labels(labels.shape, place.axis, channels)
    return bool(((labels == wanted) | (labels < 0)).all()) and bool((labels > FOREIGN).any())


def _joined_below(
    model: ir.Model, stream: Stream, value: ir.Value, place: Place, shapes: Shapes
) -> _Joined:
    """Record what reads `value` and yield the outputs of its readers that are the stream too."""
    rank = len(shapes[str(value.name)])
    for node, index in readers(value):
        linear = linear_at(node)
        if node.op_type == "Shape" or node in _seen_norms(stream):
            continue
        if node.op_type == "LayerNormalization" and index == 0 and place.axis == rank - 1:
            found = absorbers(model, node.outputs[0], shapes)
            stream.norms.append(NormReader(node, place.blocks, found))
        elif linear is not None and index == 0:
            if linear.group == 1 and place.axis == linear.channel_axis % rank:
                stream.layers.append((linear, place.blocks))
            else:
                stream.obstacles.append(f"{linear.name} reads the stream channel by channel")
        elif node.op_type == "Add":
            out = shapes[str(node.outputs[0].name)]
            yield node.outputs[0], Place(place.axis + len(out) - rank, place.blocks)
        elif node.op_type in _MOVES:
            yield from _moved(stream, node, value, place, shapes)
        else:
            stream.obstacles.append(f"{node.op_type} {node.name} reads the stream")


def _seen_norms(stream: Stream) -> set[ir.Node]:
    return {reader.norm for reader in stream.norms}


def _moved(stream: Stream, node: ir.Node, value: ir.Value, place: Place, shapes: Shapes) -> _Joined:
    labels = _labels(shapes[str(value.name)], place.axis, stream.channels)
    made = step(node, {value: labels}, shapes, _STEP)
    for position, out in enumerate(node.outputs):
        found = None if made is None else _place_in(made[position], stream.channels)
        if found is None:
            stream.obstacles.append(f"{node.op_type} {node.name} mixes the channels of the stream")
        else:
            yield out, found


def _place_in(labels: Labels, channels: int) -> Place | None:
    for axis in reversed(range(labels.ndim)):
        size = labels.shape[axis]
        if size % channels == 0 and size:
            place = Place(axis, size // channels)
            if _matches(labels, place, channels):
                return place
    return None


def tiled(channels: Labels, count: int) -> bool:
    """Whether a reader's channels are runs of all `count` channels in order."""
    if channels.size % count:
        return False
    return bool(np.array_equal(channels, np.tile(np.arange(count), channels.size // count)))
