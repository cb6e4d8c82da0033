"""Q/DQ inside attention: on q, k, the softmax's result and v, all four or none.

TensorRT has one fused INT8 kernel for the whole of it and none for parts. Which sites get it, and
from which ranges, is decided in `compress.attention_int8`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx_ir as ir

from vitdeploy.graph.attention import AttentionGraphSite
from vitdeploy.graph.qdq import ActivationRange, QuantScheme, insert_pair_
from vitdeploy.graph.surgery import readers

Place = tuple[ir.Node, int]
"""A node and the index of one of its inputs."""


def operands(site: AttentionGraphSite, scheme: QuantScheme) -> tuple[Place, ...]:
    """Return where q, k and v are quantised: three places, or one; then the softmax's result."""
    if scheme.packs_attention:
        ((node, index),) = readers(site.query.linear.output)
        return ((node, index), (site.context_matmul, 0))
    return (
        (site.score_matmul, 0),
        (site.score_matmul, 1),
        (site.context_matmul, 1),
        (site.context_matmul, 0),
    )


def is_packable(site: AttentionGraphSite) -> bool:
    """Return whether one layer gives q, k and v, which reach their products as they are."""
    layers = {projection.linear.node for projection in site.projections.values()}
    touched = site.has_rope or site.has_qk_norm or bool(site.scale_nodes)
    return len(layers) == 1 and not touched and len(readers(site.query.linear.output)) == 1


def tokens_of(site: AttentionGraphSite) -> int | None:
    """Return how many keys each query attends to; None where the graph does not tell."""
    shape = site.softmax.outputs[0].shape
    last = shape[-1] if shape is not None and len(shape) else None
    return last if isinstance(last, int) else None


def insert_attention_qdq_(
    model: ir.Model,
    sites: Iterable[AttentionGraphSite],
    ranges: Mapping[str, ActivationRange],
    scheme: QuantScheme,
) -> None:
    """Quantise q, k, v and the softmax's result of each site in place.

    Args:
        model: the graph, weights quantised or not.
        sites: found in this graph or in one of the same node names.
        ranges: of all `operands` by value name.
        scheme: what the runtime takes.
    """
    nodes = {str(node.name): node for node in model.graph}
    for site in sites:
        *inputs, weights = operands(site, scheme)
        # Engines multiply q, k and v without zero points; the softmax's result starts at zero.
        symmetric = replace(scheme, activation=ir.DataType.INT8, symmetric_activations=True)
        for (product, index), own in [*((place, symmetric) for place in inputs), (weights, scheme)]:
            node = nodes[str(product.name)]
            value = node.inputs[index]
            assert value is not None
            pair = insert_pair_(model, value, ranges[str(value.name)], own, before=node)
            node.replace_input_with(index, pair)
    model.graph.sort()
