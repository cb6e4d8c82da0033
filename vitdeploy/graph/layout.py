"""Where each channel of a value goes: tracing integer labels through layout operators.

Labels (usually the channel number) ride through Reshape, Transpose, Slice, Concat, ... on concrete
shapes, so that a fold need not know how an exporter writes a window partition or a packed qkv: it
looks at which label arrives where. Arithmetic stops a trace, with the exceptions of `Through`.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from vitdeploy.graph.constants import fold_constants_
from vitdeploy.graph.layout_ops import FOREIGN, LAYOUT, ZERO, Labels, Shapes, Through, step
from vitdeploy.graph.surgery import Array, int_attribute, new_constant_, readers, replace_

_SMALL = 1024
"""Elements up to which a constant may be part of shape arithmetic; larger ones are weights."""


@dataclass(frozen=True, eq=False)
class Sink:
    """One reader at which a trace stopped."""

    node: ir.Node
    index: int
    labels: Labels


@dataclass(eq=False)
class Trace:
    """What became of a traced value."""

    sinks: list[Sink] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)
    """The operators passed, in graph order."""
    outputs: list[ir.Value] = field(default_factory=list)
    """Graph outputs that hold the value, whole or in part."""
    mixed: list[tuple[Labels, Labels]] = field(default_factory=list)
    """Label arrays that a rotary Add summed."""
    labels: dict[str, Labels] = field(default_factory=dict)
    """Labels of each traced value by name (with `keep`)."""


@dataclass(frozen=True)
class Inferred:
    """What is known of the values of a model at one batch size, by name."""

    shapes: Shapes
    types: Mapping[str, int]
    """ONNX element types."""
    constants: Mapping[str, Array]
    """Values that follow from shapes alone, such as the target of a Reshape."""


def concrete_shapes(model: ir.Model, batch: int = 1) -> Shapes:
    """Return the shapes of all values by name, with the first axis of each input set to `batch`.

    Values whose shape stays unknown are absent. Weights are not copied: only small constants,
    which shape arithmetic needs, take part.
    """
    return infer(model, batch).shapes


def infer(model: ir.Model, batch: int) -> Inferred:
    """Return shapes and types at `batch`; shape arithmetic is evaluated until nothing is new."""
    copy = _skeleton(model, batch)
    shapes, types = _inferred(copy)
    constants: dict[str, Array] = {}
    while new := _resolve_shapes_(copy, shapes):
        constants |= new
        shapes, types = _inferred(copy)
    for name, value in model.graph.initializers.items():
        if value.shape is not None:
            shapes[name] = tuple(int(d) for d in value.shape)
    for name, array in constants.items():
        shapes[name] = array.shape
        types[name] = ir.DataType.from_numpy(array.dtype).value
    return Inferred(shapes, types, constants)


def _inferred(model: ir.Model) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    proto = ir.to_proto(model)
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        graph = proto.graph
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, int] = {}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        types[info.name] = tensor.elem_type
        known = all(dim.HasField("dim_value") for dim in tensor.shape.dim)
        if tensor.HasField("shape") and known:
            shapes[info.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes, types


def _resolve_shapes_(model: ir.Model, shapes: Shapes) -> dict[str, Array]:
    """Turn Shape nodes of known shapes and what follows from them into constants; return those."""
    graph = model.graph
    found: dict[str, Array] = {}
    for node in list(graph):
        if node.op_type != "Shape" or str(node.inputs[0].name) not in shapes:
            continue
        start, end = int_attribute(node, "start", 0), int_attribute(node, "end", 2**31)
        dims = np.array(shapes[str(node.inputs[0].name)][start:end], np.int64)
        value = node.outputs[0]
        if replace_(graph, value, new_constant_(graph, f"{value.name}_fixed", dims)):
            graph.remove(node, safe=True)
            found[str(value.name)] = dims
    return found | fold_constants_(model) if found else {}


def _skeleton(model: ir.Model, batch: int) -> ir.Model:
    """Return a copy of `model` whose weights are inputs and whose batch is fixed."""
    copy = model.clone()
    for value in copy.graph.inputs:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([batch, *list(value.shape)[1:]])
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > _SMALL:
            del copy.graph.initializers[name]
            value.const_value = None
            value.shape = ir.Shape(tensor.shape)
            value.type = ir.TensorType(tensor.dtype)
            copy.graph.inputs.append(value)
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    return copy


def channel_labels(shape: tuple[int, ...], axis: int = -1) -> Labels:
    """Return labels of `shape` that number the channels of `axis` (a read-only broadcast)."""
    axis %= len(shape)
    view = np.arange(shape[axis], dtype=np.int32).reshape(-1, *[1] * (len(shape) - axis - 1))
    return np.broadcast_to(view, shape)


def trace(
    graph: ir.Graph,
    source: ir.Value,
    labels: Labels,
    shapes: Shapes,
    through: Through = LAYOUT,
    *,
    keep: bool = False,
) -> Trace:
    """Return where the labelled elements of `source` go.

    Args:
        graph: A topologically sorted graph.
        source: The value whose elements carry `labels`.
        labels: Integer labels of the concrete shape of `source`.
        shapes: `concrete_shapes` of the model, at the batch of `labels`.
        through: The arithmetic that may be passed.
        keep: Also return the labels of every value passed; they are as large as the values.

    Returns:
        The sinks, one per reading input, the operators passed and the graph outputs reached.
    """
    order = {node: position for position, node in enumerate(graph)}
    state: dict[ir.Value, Labels] = {source: labels}
    result = Trace()
    if source.is_graph_output():
        result.outputs.append(source)
    queue = _queued(source, order)
    seen: set[ir.Node] = set()
    while queue:
        _, node = heapq.heappop(queue)
        if node in seen:
            continue
        seen.add(node)
        outputs = step(node, state, shapes, through)
        if outputs is None:
            for index, value in enumerate(node.inputs):
                if value is not None and value in state:
                    result.sinks.append(Sink(node, index, state[value]))
            continue
        result.nodes.append(node)
        if node.op_type in {"Add", "Sub"}:
            result.mixed.append((state[node.inputs[0]], state[node.inputs[1]]))
        for value, made in zip(node.outputs, outputs, strict=False):
            state[value] = made
            if keep:
                result.labels[str(value.name)] = made
            if value.is_graph_output():
                result.outputs.append(value)
            for entry in _queued(value, order):
                heapq.heappush(queue, entry)
    return result


class _Entry(tuple[int, ir.Node]):
    """A heap entry that compares by graph position alone."""

    def __lt__(self, other: Any) -> bool:
        return bool(self[0] < other[0])


def _queued(value: ir.Value, order: Mapping[ir.Node, int]) -> list[_Entry]:
    entries = [_Entry((order[node], node)) for node, _ in readers(value) if node in order]
    heapq.heapify(entries)
    return entries


def channel_map(labels: Labels, axis: int = -1) -> Labels | None:
    """Return the label of each position of `axis`, or None where it varies along other axes.

    `ZERO` is allowed anywhere and does not count; a position that only ever holds zeros, and any
    `FOREIGN` element, make the result None.
    """
    rows = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])
    top = rows.max(axis=0)
    if top.min() < 0 or rows.min() <= FOREIGN:
        return None
    same = (rows == top) | (rows == ZERO)
    return top if bool(same.all()) else None
