"""Folds the constant factors of q, k and the scores into the query's weights.

softmax(a q . b k * c) = softmax((abc q) . k) for constants a, b, c, with or without RoPE between,
for a rotation commutes with a factor. Where q is normalised, the factor goes into that norm.
"""

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import AttentionGraphSite
from vitdeploy.graph.layout import channel_labels, concrete_shapes, trace
from vitdeploy.graph.layout_ops import Shapes, Through
from vitdeploy.graph.linear import bias_of, kernel_of, set_bias_, set_kernel_
from vitdeploy.graph.readership import trace_role
from vitdeploy.graph.surgery import constant_of, remove_dead_, replace_, set_constant_, sole_reader

_LINEAR = Through(scalars=True, rotary=True)


def fold_attention_scales_(
    model: ir.Model, sites: list[AttentionGraphSite]
) -> list[tuple[str, str]]:
    """Fold the scale of each site; return (site name, reason) of those that keep theirs."""
    shapes = concrete_shapes(model)
    refused = []
    for site in sites:
        if not site.scale_nodes:
            continue
        reason = _fold_(model, site, shapes)
        if reason is not None:
            refused.append((site.name, reason))
    remove_dead_(model.graph)
    return refused


def _fold_(model: ir.Model, site: AttentionGraphSite, shapes: Shapes) -> str | None:
    if any(node in site.key.nodes for node in site.scale_nodes):
        reason = _shared_key(model, site, shapes)
        if reason is not None:
            return reason
    for node in site.scale_nodes:
        within = node in site.query.nodes or node in site.key.nodes
        if not within and sole_reader(node.outputs[0]) is None:
            return f"{node.name} has several readers"
    norm = next((n for n in site.query.nodes if n.op_type == "LayerNormalization"), None)
    reason = (
        _scale_norm_(model, site, norm, shapes)
        if norm is not None
        else _scale_weights_(model, site, shapes)
    )
    if reason is not None:
        return reason
    for node in site.scale_nodes:
        constant = constant_of(node.inputs[0]) is not None
        replace_(model.graph, node.outputs[0], node.inputs[1 if constant else 0])
    return None


def _shared_key(model: ir.Model, site: AttentionGraphSite, shapes: Shapes) -> str | None:
    through = Through(scalars=True, rotary=True, norms=True)
    found = trace_role(model, site, "key", shapes, through)
    return found if isinstance(found, str) else None


def _scale_weights_(model: ir.Model, site: AttentionGraphSite, shapes: Shapes) -> str | None:
    found = trace_role(model, site, "query", shapes, _LINEAR)
    if isinstance(found, str):
        return found
    linear = site.query.linear
    factor = np.ones(linear.out_channels)
    factor[site.query.flat] = site.scale
    kernel = kernel_of(linear)
    set_kernel_(model.graph, linear, kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1)))
    if linear.bias is not None:
        set_bias_(model.graph, linear, bias_of(linear) * factor)
    return None


def _scale_norm_(
    model: ir.Model, site: AttentionGraphSite, norm: ir.Node, shapes: Shapes
) -> str | None:
    """Scale gamma and beta of the query's norm; the result must go to the scores alone."""
    out = norm.outputs[0]
    parameters = [constant_of(value) for value in norm.inputs[1:]]
    if any(array is None for array in parameters):
        return f"the parameters of {norm.name} are not constant"
    found = trace(model.graph, out, channel_labels(shapes[str(out.name)]), shapes, _LINEAR)
    if found.outputs or any(sink.node is not site.score_matmul for sink in found.sinks):
        return f"{norm.name} has other readers than the scores"
    before = [n for n in site.query.nodes if n in site.scale_nodes and n not in found.nodes]
    if before:
        return f"{before[0].name} scales the query before {norm.name}"
    for index, array in enumerate(parameters, start=1):
        set_constant_(model.graph, norm, index, np.asarray(array, np.float64) * site.scale)
    return None
