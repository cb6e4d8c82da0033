"""Splits a packed query-key-value layer into three, for targets and schemes that need them apart.

So is a packed key-value layer, of attention pooling for one. The function is unchanged: each new
layer has the columns of its role, in head order. In a quantised graph each has its columns' codes
and scales, so that the results are the same there too.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import AttentionGraphSite, Projection, Role, find_attention
from vitdeploy.graph.layout import concrete_shapes, trace
from vitdeploy.graph.layout_ops import LAYOUT, Labels, Shapes
from vitdeploy.graph.surgery import (
    constant_of,
    fresh_name,
    new_constant_,
    other_input,
    remove_dead_,
    replace_,
    sole_reader,
)

_BATCH = 2


def split_qkv_(
    model: ir.Model, sites: Sequence[AttentionGraphSite] | None = None
) -> list[tuple[str, str]]:
    """Split every packed projection; return (site name, reason) of those that stay packed.

    Args:
        model: FP32, or with Q/DQ.
        sites: of the FP32 graph that a quantised one was made from, where nodes have the same
            names; found in `model` where None.
    """
    refused = []
    nodes = {str(node.name): node for node in model.graph}
    shapes = concrete_shapes(model, _BATCH)
    for site in find_attention(model) if sites is None else sites:
        if site.packed:
            reason = _split_(model.graph, site, nodes, shapes)
            if reason is not None:
                refused.append((site.name, reason))
    remove_dead_(model.graph)
    return refused


def _split_(
    graph: ir.Graph, site: AttentionGraphSite, nodes: dict[str, ir.Node], shapes: Shapes
) -> str | None:
    layers = Counter(projection.linear.name for projection in site.projections.values())
    packed = {role: p for role, p in site.projections.items() if layers[p.linear.name] > 1}
    first = next(iter(packed.values())).linear.name
    found = {}
    for role, projection in packed.items():
        product = nodes.get(projection.linear.name)
        if product is None or product.op_type != "MatMul":
            return f"{first} is no product of tokens with a matrix"
        found[role] = _head_value(graph, product, projection, shapes)
    missing = [role for role, value in found.items() if value is None]
    if missing:
        return f"{first} does not make (batch, heads, tokens, channels) of {missing}"
    for role, value in found.items():
        assert value is not None
        _split_role_(graph, nodes[packed[role].linear.name], (role, packed[role]), value, shapes)
    return None


def result_of(product: ir.Node) -> ir.Value:
    """Return what a product gives, its bias and the quantisation of its result included."""
    return _behind(product)[-1].outputs[0]


def _behind(product: ir.Node) -> list[ir.Node]:
    """Return what belongs to a product: itself, the Add of its bias, the Q/DQ of its result."""
    chain = [product]
    for kind in ("Add", "QuantizeLinear", "DequantizeLinear"):
        output = chain[-1].outputs[0]
        reader = sole_reader(output)
        if reader is None or reader.op_type != kind:
            continue
        if kind != "Add" or constant_of(other_input(reader, output)) is not None:
            chain.append(reader)
    return chain


def _head_value(
    graph: ir.Graph, product: ir.Node, projection: Projection, shapes: Shapes
) -> ir.Value | None:
    """Return the first value (batch, heads, tokens, channels) that holds one role alone."""
    output = result_of(product)
    shape = shapes.get(str(output.name))
    if shape is None or len(shape) != 3:
        return None
    labels: Labels = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    found = trace(graph, output, labels, shapes, LAYOUT, keep=True)
    wanted = labels[:, :, projection.columns].transpose(0, 2, 1, 3)
    for node in found.nodes:
        for value in node.outputs:
            if np.array_equal(found.labels[str(value.name)], wanted):
                return value
    return None


def _split_role_(
    graph: ir.Graph,
    product: ir.Node,
    own: tuple[Role, Projection],
    old: ir.Value,
    shapes: Shapes,
) -> None:
    (role, projection), chain = own, _behind(product)
    scope = f"{str(product.name).rsplit('/', 1)[0]}.{role}"
    nodes: list[ir.Node] = []

    def add(node: ir.Node) -> ir.Value:
        nodes.append(node)
        return node.outputs[0]

    weight = product.inputs[1]
    assert weight is not None
    value = _columns_of(graph, weight, projection.flat, f"{scope}.weight", nodes)
    value = add(ir.node("MatMul", [product.inputs[0], value], name=f"{scope}/MatMul"))
    for node in chain[1:]:
        if node.op_type == "Add":
            bias = constant_of(other_input(node, product.outputs[0]))
            assert bias is not None
            part = new_constant_(graph, f"{scope}.bias", bias[..., projection.flat])
            value = add(ir.node("Add", [value, part], name=f"{scope}/Add"))
        else:
            value = add(_copy(node, [value, *node.inputs[1:]], f"{scope}/{node.op_type}"))
    heads, width = projection.columns.shape
    tokens = shapes[str(chain[-1].outputs[0].name)][1]
    target = new_constant_(graph, f"{scope}.shape", np.array([-1, tokens, heads, width], np.int64))
    value = add(ir.node("Reshape", [value, target], name=f"{scope}/Reshape"))
    perm = {"perm": [0, 2, 1, 3]}
    add(ir.node("Transpose", [value], attributes=perm, name=f"{scope}/Transpose"))
    anchor = chain[-1]
    for node in nodes:
        node.outputs[0].name = fresh_name(graph, f"{node.name}_output")
        if node.op_type != "QuantizeLinear":
            node.outputs[0].type = chain[-1].outputs[0].type
        graph.insert_after(anchor, node)
        anchor = node
    replace_(graph, old, anchor.outputs[0])


def _columns_of(
    graph: ir.Graph, value: ir.Value, columns: Labels, wish: str, nodes: list[ir.Node]
) -> ir.Value:
    """Return columns of a constant matrix, or of one behind DequantizeLinear, added to `nodes`."""
    array = constant_of(value)
    if array is not None:
        return new_constant_(graph, wish, array[..., columns])
    dequantize = value.producer()
    assert dequantize is not None
    inputs: list[ir.Value | None] = []
    for part, name in zip(dequantize.inputs, ("codes", "scale", "zero_point"), strict=False):
        array = constant_of(part)
        if array is None or array.ndim == 0:
            inputs.append(part)
        else:
            inputs.append(new_constant_(graph, f"{wish}_{name}", array[..., columns]))
    nodes.append(_copy(dequantize, inputs, f"{wish}/DequantizeLinear"))
    return nodes[-1].outputs[0]


def _copy(node: ir.Node, inputs: Sequence[ir.Value | None], name: str) -> ir.Node:
    copy = ir.node(node.op_type, inputs, attributes=dict(node.attributes), name=name)
    copy.outputs[0].type = node.outputs[0].type
    return copy
