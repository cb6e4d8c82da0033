"""Recognises attention: which channels of which layers are q, k and v, and what lies between.

A site is found from its Softmax: up to the query-key product, down to the value product, and from
there to the layers that make q, k and v and the layer that reads the result. Channels are followed
as labels (`layout`), so packed or separate projections in any axis order give the same answer.
Nothing is edited here; `packed_qkv` splits a packed projection.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.layout import Sink, Trace, channel_labels, channel_map, concrete_shapes, trace
from vitdeploy.graph.layout_ops import LAYOUT_OPS, Labels, Shapes, Through
from vitdeploy.graph.linear import Linear, linear_at, linear_of
from vitdeploy.graph.surgery import constant_of, int_attribute, readers, scalar_of

Role = Literal["query", "key", "value"]

_SCORE_OPS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Reshape", "Cast", "Where", "Unsqueeze", "Identity"}
)
_NORM_OPS = frozenset(
    {"LayerNormalization", "RMSNormalization", "ReduceL2", "ReduceMean", "ReduceSumSquare"}
    | {"LpNormalization", "InstanceNormalization", "SimplifiedLayerNormalization", "Sqrt"}
)
_PASSED_OPS = (
    LAYOUT_OPS | _NORM_OPS | {"Mul", "Div", "Add", "Sub", "Neg", "Clip", "Max", "Pow", "Cast"}
)
_COLUMNS = Through(scalars=True, rotary=True, norms=True)


@dataclass(frozen=True, eq=False)
class Projection:
    """The layer that makes q, k or v."""

    linear: Linear
    columns: Labels
    """(heads, head_dim): the output channel of `linear` for each channel of each head."""
    nodes: tuple[ir.Node, ...]
    """The operators between the layer and the product, in graph order."""

    @property
    def flat(self) -> Labels:
        """The columns as one row, head after head."""
        return self.columns.reshape(-1)


@dataclass(frozen=True, eq=False)
class AttentionGraphSite:
    """One attention, as the folds and the quantiser need it."""

    name: str
    query: Projection
    key: Projection
    value: Projection
    softmax: ir.Node
    score_matmul: ir.Node
    """q times k transposed."""
    context_matmul: ir.Node
    """Softmax times v."""
    scale: float
    """Product of the one-element factors of q, k and the scores before any bias is added."""
    scale_nodes: tuple[ir.Node, ...]
    """The Mul and Div by one constant element that make up `scale`."""
    bias_nodes: tuple[ir.Node, ...]
    """The Adds (relative bias, mask) between the scores and the softmax."""
    output: Linear | None
    """The output projection, or None where no single layer reads the result."""
    output_rows: Labels | None
    """(heads, head_dim): the input channel of `output` for each channel of each head."""
    num_heads: int
    head_dim: int
    has_rope: bool
    has_qk_norm: bool

    @property
    def packed(self) -> bool:
        """Whether q, k and v come from fewer than three layers."""
        nodes = {p.linear.node for p in (self.query, self.key, self.value)}
        return len(nodes) < 3

    @property
    def projections(self) -> dict[Role, Projection]:
        """The three projections by role."""
        return {"query": self.query, "key": self.key, "value": self.value}


class _NotAttentionError(Exception):
    """Why a Softmax is not an attention that can be described; caught in this module."""


def find_attention(model: ir.Model) -> list[AttentionGraphSite]:
    """Return the attention sites of `model` in graph order."""
    return recognise_attention(model)[0]


def recognise_attention(
    model: ir.Model,
) -> tuple[list[AttentionGraphSite], list[tuple[str, str]]]:
    """Return the attention sites, and (node name, reason) of each Softmax that is none."""
    shapes = concrete_shapes(model)
    sites, refused = [], []
    for node in model.graph:
        if node.op_type != "Softmax":
            continue
        try:
            sites.append(_site(model, node, shapes))
        except _NotAttentionError as e:
            refused.append((str(node.name), str(e)))
    return sites, refused


def _site(model: ir.Model, softmax: ir.Node, shapes: Shapes) -> AttentionGraphSite:
    _require_last_axis(softmax, shapes)
    scores, between = _score_matmul(softmax)
    context = _context_matmul(softmax)
    query = _projection(model, scores, "query", shapes)
    key = _projection(model, scores, "key", shapes)
    value = _projection(model, context, "value", shapes)
    if not query.columns.shape == key.columns.shape or len(query.columns) != len(value.columns):
        raise _NotAttentionError(
            f"q has {query.columns.shape} heads and channels, k {key.columns.shape}, "
            f"v {value.columns.shape}"
        )
    output, rows = _output(model, context, value.columns, shapes)
    biases = [position for position, node in enumerate(between) if node.op_type in {"Add", "Sub"}]
    unbiased = between[: biases[0]] if biases else between
    factors = [n for n in (*query.nodes, *key.nodes, *unbiased) if factor_of(n) is not None]
    normal = [n for p in (query, key) for n in p.nodes if n.op_type in _NORM_OPS]
    turned = [n for p in (query, key) for n in p.nodes if n.op_type in {"Add", "Sub", "Neg"}]
    return AttentionGraphSite(
        name=_scope(str(softmax.name)),
        query=query,
        key=key,
        value=value,
        softmax=softmax,
        score_matmul=scores,
        context_matmul=context,
        scale=float(np.prod([factor_of(node) or 1.0 for node in factors])),
        scale_nodes=tuple(factors),
        bias_nodes=tuple(node for node in between if node.op_type in {"Add", "Sub"}),
        output=output,
        output_rows=rows,
        num_heads=query.columns.shape[0],
        head_dim=query.columns.shape[1],
        has_rope=bool(turned),
        has_qk_norm=bool(normal),
    )


def _scope(name: str) -> str:
    return name.rsplit("/", 1)[0] if "/" in name else name


def factor_of(node: ir.Node) -> float | None:
    """Return the constant by which a Mul or Div scales, or None."""
    if node.op_type == "Mul":
        factors = [scalar_of(value) for value in node.inputs]
        return next((factor for factor in factors if factor is not None), None)
    divisor = scalar_of(node.inputs[1]) if node.op_type == "Div" else None
    return 1.0 / divisor if divisor else None


def _require_last_axis(softmax: ir.Node, shapes: Shapes) -> None:
    shape = shapes.get(str(softmax.outputs[0].name))
    if shape is None:
        raise _NotAttentionError("its shape is unknown")
    if int_attribute(softmax, "axis", -1) % len(shape) != len(shape) - 1:
        raise _NotAttentionError("it does not work on the last axis")


def _score_matmul(softmax: ir.Node) -> tuple[ir.Node, tuple[ir.Node, ...]]:
    """Return the query-key product above `softmax` and the nodes between, in graph order."""
    between: list[ir.Node] = []
    value = softmax.inputs[0]
    while True:
        node = value.producer()
        if node is not None and node.op_type == "MatMul" and linear_at(node) is None:
            return node, tuple(reversed(between))
        if node is None or node.op_type not in _SCORE_OPS:
            seen = "a graph input" if node is None else f"{node.op_type} {node.name}"
            raise _NotAttentionError(f"above it stands {seen}, not a query-key product")
        between.append(node)
        value = _score_input(node)


def _score_input(node: ir.Node) -> ir.Value:
    """Return the input of `node` that leads to the scores: the one that is not a bias or mask."""
    candidates = [v for v in node.inputs if v is not None and _leads_to_scores(v)]
    if len(candidates) != 1:
        raise _NotAttentionError(f"{node.name} does not add to one query-key product")
    return candidates[0]


def _leads_to_scores(value: ir.Value, depth: int = 8) -> bool:
    node = value.producer()
    if node is None or depth == 0 or constant_of(value) is not None:
        return False
    if node.op_type == "MatMul":
        # not the product of the query with a table, which is SAM's relative position
        return all(constant_of(factor) is None for factor in node.inputs)
    if node.op_type not in _SCORE_OPS:
        return False
    return any(_leads_to_scores(v, depth - 1) for v in node.inputs if v is not None)


def _context_matmul(softmax: ir.Node) -> ir.Node:
    """Return the product of the softmax with v."""
    value = softmax.outputs[0]
    while True:
        users = [node for node, _ in readers(value) if node.op_type != "IsNaN"]
        if len(users) != 1 or value.is_graph_output():
            raise _NotAttentionError("its result is read by more than one node or by an output")
        node = users[0]
        if node.op_type == "MatMul" and node.inputs[0] is value and linear_at(node) is None:
            return node
        if node.op_type not in {"Identity", "Dropout", "Cast", "Where", "Reshape"}:
            raise _NotAttentionError(f"its result goes into {node.op_type} {node.name}, not v")
        value = node.outputs[0]


def _projection(model: ir.Model, product: ir.Node, role: Role, shapes: Shapes) -> Projection:
    """Return the one layer that makes the `role` input of `product`, and its channels by head."""
    index = 0 if role == "query" else 1
    sources, nodes = _sources(product.inputs[index], role)
    if len(sources) != 1:
        names = ", ".join(sorted(source.name for source in sources)) or "no layer"
        raise _NotAttentionError(f"{role} comes from {names} instead of one layer")
    linear = sources[0]
    shape = shapes.get(str(linear.output.name))
    if shape is None:
        raise _NotAttentionError(f"the shape of {linear.name} is unknown")
    labels = channel_labels(shape, linear.channel_axis)
    found = trace(model.graph, linear.output, labels, shapes, _COLUMNS)
    arrived = [s for s in found.sinks if s.node is product and s.index == index]
    if not arrived:
        raise _NotAttentionError(f"the channels of {linear.name} cannot be followed to {role}")
    columns = _columns(arrived[0].labels, transposed=role == "key")
    if columns is None:
        raise _NotAttentionError(f"the heads of {role} are not separate channels")
    return Projection(linear, columns, tuple(node for node in model.graph if node in nodes))


def _sources(value: ir.Value, role: str) -> tuple[list[Linear], set[ir.Node]]:
    """Return the layers above `value` and the operators passed on the way."""
    found: list[Linear] = []
    nodes: set[ir.Node] = set()
    stack: list[ir.Value] = [value]
    while stack:
        current = stack.pop()
        node = current.producer()
        if node is None or node in nodes or constant_of(current) is not None:
            continue
        linear = linear_of(current)
        if linear is not None:
            if all(linear.node is not other.node for other in found):
                found.append(linear)
            continue
        if node.op_type in {"Shape", "Size"} or not _is_float(current):
            continue
        if node.op_type not in _PASSED_OPS:
            raise _NotAttentionError(f"{role} passes through {node.op_type} {node.name}")
        nodes.add(node)
        data = node.inputs[:1] if node.op_type in LAYOUT_OPS - {"Concat"} else node.inputs
        stack.extend(v for v in data if v is not None)
    return found, _depending(nodes, found)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _depending(nodes: set[ir.Node], sources: list[Linear]) -> set[ir.Node]:
    """Return those `nodes` that a source reaches: tables computed on the side are left out."""
    reached: set[ir.Node] = set()
    stack = [linear.output for linear in sources]
    while stack:
        for node, _ in readers(stack.pop()):
            if node in nodes and node not in reached:
                reached.add(node)
                stack.extend(node.outputs)
    return reached


def _columns(labels: Labels, *, transposed: bool) -> Labels | None:
    """Return (heads, head_dim) channels from labels (..., tokens, head_dim), or None."""
    rows = np.swapaxes(labels, -1, -2) if transposed else labels
    if rows.ndim < 3 or rows.min() < 0 or not bool((rows == rows[..., :1, :]).all()):
        return None
    heads = rows[..., 0, :].reshape(-1, rows.shape[-1])
    _, first = np.unique(heads[:, 0], return_index=True)
    unique = heads[np.sort(first)]
    if np.unique(unique).size != unique.size or np.unique(heads, axis=0).shape != unique.shape:
        return None
    return np.ascontiguousarray(unique)


def _output(
    model: ir.Model, context: ir.Node, value_columns: Labels, shapes: Shapes
) -> tuple[Linear | None, Labels | None]:
    """Return the one layer that reads the attention's result and its input channels by head."""
    out = context.outputs[0]
    shape = shapes.get(str(out.name))
    heads, width = value_columns.shape
    if shape is None or shape[-1] != width or int(np.prod(shape[:-2])) % heads:
        return None, None
    # The product keeps the axes of v, so head h of v is head h of the result.
    number = np.arange(heads * width, dtype=np.int32).reshape(heads, 1, width)
    batch = int(np.prod(shape[:-2])) // heads
    if len(shape) == 4 and shape[1] != heads:
        return None, None
    labels = np.broadcast_to(number, (batch, heads, shape[-2], width)).reshape(shape)
    found = trace(model.graph, out, labels, shapes)
    read = _output_of(found)
    return (None, None) if read is None else (read[0], read[1].reshape(heads, width))


def _output_of(found: Trace) -> tuple[Linear, Labels] | None:
    layers = list(_layer_sinks(found.sinks))
    if len(layers) != 1 or len(found.sinks) != 1 or found.outputs:
        return None
    linear, sink = layers[0]
    order = channel_map(sink.labels, linear.channel_axis)
    if order is None or np.unique(order).size != order.size:
        return None
    rows = np.empty_like(order)
    rows[order] = np.arange(order.size, dtype=order.dtype)
    return linear, rows


def _layer_sinks(sinks: list[Sink]) -> Iterator[tuple[Linear, Sink]]:
    for sink in sinks:
        linear = linear_at(sink.node)
        if linear is not None and sink.index == 0:
            yield linear, sink
