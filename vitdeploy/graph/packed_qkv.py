"""Splits a packed query-key-value layer into three, for targets and schemes that need them apart.

So is a packed key-value layer, of attention pooling for one. The function is unchanged: each new
layer has the columns of its role, in head order.
"""

from collections import Counter

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import AttentionGraphSite, Role, find_attention
from vitdeploy.graph.layout import concrete_shapes, trace
from vitdeploy.graph.layout_ops import LAYOUT
from vitdeploy.graph.linear import Linear, bias_of, kernel_of
from vitdeploy.graph.surgery import (
    constant_of,
    fresh_name,
    new_constant_,
    remove_dead_,
    replace_,
)

_BATCH = 2


def split_qkv_(model: ir.Model) -> list[tuple[str, str]]:
    """Split every packed projection; return (site name, reason) of those that stay packed."""
    refused = []
    for site in find_attention(model):
        if site.packed:
            reason = _split_(model, site)
            if reason is not None:
                refused.append((site.name, reason))
    remove_dead_(model.graph)
    return refused


def _split_(model: ir.Model, site: AttentionGraphSite) -> str | None:
    layers = Counter(projection.linear.name for projection in site.projections.values())
    packed = {role: p for role, p in site.projections.items() if layers[p.linear.name] > 1}
    found = {role: _head_value(model, site, role) for role in packed}
    missing = [role for role, value in found.items() if value is None]
    unread = [p.linear for p in packed.values() if p.linear.node.op_type != "MatMul"]
    if missing or unread:
        name = next(iter(packed.values())).linear.name
        return f"{name} does not make (batch, heads, tokens, channels) of {missing}"
    for role, value in found.items():
        assert value is not None
        _split_role_(model.graph, site, role, value)
    return None


def _head_value(model: ir.Model, site: AttentionGraphSite, role: Role) -> ir.Value | None:
    """Return the first value (batch, heads, tokens, channels) that holds `role` alone."""
    projection, shapes = site.projections[role], concrete_shapes(model, _BATCH)
    output = projection.linear.output
    shape = shapes.get(str(output.name))
    if shape is None or len(shape) != 3:
        return None
    labels = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    found = trace(model.graph, output, labels, shapes, LAYOUT, keep=True)
    wanted = labels[:, :, projection.columns].transpose(0, 2, 1, 3)
    for node in found.nodes:
        for value in node.outputs:
            if np.array_equal(found.labels[str(value.name)], wanted):
                return value
    return None


def _split_role_(graph: ir.Graph, site: AttentionGraphSite, role: Role, old: ir.Value) -> None:
    projection = site.projections[role]
    linear, flat = projection.linear, projection.flat
    scope = f"{linear.name.rsplit('/', 1)[0]}.{role}"
    dtype = constant_of(linear.weight).dtype  # type: ignore[union-attr]
    weight = new_constant_(graph, f"{scope}.weight", kernel_of(linear)[flat].T.astype(dtype))
    nodes = [ir.node("MatMul", [linear.data, weight], name=f"{scope}/MatMul")]
    if linear.bias is not None:
        bias = new_constant_(graph, f"{scope}.bias", bias_of(linear)[flat].astype(dtype))
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=f"{scope}/Add"))
    heads, width = projection.columns.shape
    shape = np.array([-1, _tokens(linear), heads, width], dtype=np.int64)
    target = new_constant_(graph, f"{scope}.shape", shape)
    nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], target], name=f"{scope}/Reshape"))
    perm = {"perm": [0, 2, 1, 3]}
    nodes.append(
        ir.node("Transpose", [nodes[-1].outputs[0]], attributes=perm, name=f"{scope}/Transpose")
    )
    anchor = linear.node
    for node in nodes:
        node.outputs[0].name = fresh_name(graph, f"{node.name}_output")
        node.outputs[0].type = linear.output.type
        graph.insert_after(anchor, node)
        anchor = node
    replace_(graph, old, nodes[-1].outputs[0])


def _tokens(linear: Linear) -> int:
    return int(linear.output.shape[1])
