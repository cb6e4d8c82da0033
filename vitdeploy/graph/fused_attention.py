"""Attention as ONNX Runtime's own operator, `com.microsoft.MultiHeadAttention`.

Its CPU kernel (flash attention) reads q, k and v as their layers give them, so that neither the
scores nor transposed copies are written to memory. No other runtime has it, and it takes float
alone: what is added to the scores, or done to q and k on their way, stays as it is. The standard's
`Attention` (opset 23) has no such kernel in ONNX Runtime 1.31: it is computed in parts.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import AttentionGraphSite
from vitdeploy.graph.layout import concrete_shapes, trace
from vitdeploy.graph.layout_ops import LAYOUT, LAYOUT_OPS, Labels, Shapes
from vitdeploy.graph.packed_qkv import result_of
from vitdeploy.graph.surgery import fresh_name, remove_dead_, replace_

DOMAIN = "com.microsoft"
_BATCH = 2


def fuse_attention_(model: ir.Model, sites: Sequence[AttentionGraphSite]) -> list[tuple[str, str]]:
    """Make each site one operator; return (site name, reason) of those that stay as they are.

    Args:
        model: FP32, or with Q/DQ around its products with weights.
        sites: of the FP32 graph with the same node names, q, k and v apart.
    """
    nodes = {str(node.name): node for node in model.graph}
    shapes = concrete_shapes(model, _BATCH)
    refused = []
    for site in sites:
        reason = _unfused_reason(site) or _fuse_(model.graph, site, nodes, shapes)
        if reason is not None:
            refused.append((site.name, reason))
    if len(refused) < len(sites):
        model.opset_imports[DOMAIN] = 1
    remove_dead_(model.graph)
    return refused


def _unfused_reason(site: AttentionGraphSite) -> str | None:
    if site.bias_nodes:
        return "something is added to its scores, with which the operator is slower"
    if site.has_rope or site.has_qk_norm:
        return "q and k do not reach their product as their layers give them"
    if site.packed:
        return "q, k and v are not of three layers"
    for projection in site.projections.values():
        passed = [node for node in projection.nodes if node not in site.scale_nodes]
        is_plain = all(node.op_type in LAYOUT_OPS for node in passed)
        if not is_plain or not np.array_equal(projection.flat, np.arange(projection.flat.size)):
            return "its heads are not the channels of its layers in order"
    return None


def _fuse_(
    graph: ir.Graph, site: AttentionGraphSite, nodes: dict[str, ir.Node], shapes: Shapes
) -> str | None:
    context = nodes[str(site.context_matmul.name)].outputs[0]
    if any(_is_quantized(nodes[str(n.name)]) for n in (site.score_matmul, site.context_matmul)):
        return "it is INT8 throughout"
    old = _joined_heads(graph, context, shapes)
    if old is None:
        return "its heads are not joined to (batch, tokens, channels)"
    inputs = []
    for projection in (site.query, site.key, site.value):
        product = nodes.get(projection.linear.name)
        if product is None or product.op_type != "MatMul":
            return f"{projection.linear.name} is no product of tokens with a matrix"
        inputs.append(result_of(product))
    fused = ir.node(
        "MultiHeadAttention",
        inputs,
        attributes={"num_heads": site.num_heads, "scale": site.scale},
        domain=DOMAIN,
        name=f"{site.name}/MultiHeadAttention",
    )
    fused.outputs[0].name = fresh_name(graph, f"{site.name}/MultiHeadAttention_output")
    fused.outputs[0].type, fused.outputs[0].shape = old.type, old.shape
    producer = old.producer()
    assert producer is not None
    graph.insert_before(producer, fused)
    replace_(graph, old, fused.outputs[0])
    return None


def _is_quantized(product: ir.Node) -> bool:
    makers = [value.producer() for value in product.inputs if value is not None]
    return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _joined_heads(graph: ir.Graph, context: ir.Value, shapes: Shapes) -> ir.Value | None:
    """Return the first value (batch, tokens, channels) with the heads one after the other."""
    shape = shapes.get(str(context.name))
    if shape is None or len(shape) != 4:
        return None
    labels: Labels = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    found = trace(graph, context, labels, shapes, LAYOUT, keep=True)
    wanted = labels.transpose(0, 2, 1, 3).reshape(shape[0], shape[2], -1)
    values = (value for node in found.nodes for value in node.outputs)
    return next((v for v in values if np.array_equal(found.labels[str(v.name)], wanted)), None)
