"""F6: LayerScale, a constant factor per channel behind a layer, into that layer.

W' = diag(g) W, b' = g b. The factor may stand behind layout operators (FastViT's attention scales
after the transpose back to an image). Also folds a one-element factor behind a layer.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.layout import channel_labels, concrete_shapes, trace
from vitdeploy.graph.layout_ops import Labels, Shapes
from vitdeploy.graph.linear import Linear, find_linears, scale_outputs_
from vitdeploy.graph.surgery import (
    Array,
    Float64,
    constant_of,
    other_input,
    remove_dead_,
    replace_,
)


@dataclass(frozen=True, eq=False)
class Site:
    """A layer and the Mul behind it."""

    linear: Linear
    mul: ir.Node
    factor: Float64 | None
    """(out,) by output channel of the layer; None where the Mul mixes channels."""

    @property
    def name(self) -> str:
        """The name of the Mul."""
        return str(self.mul.name)


def find(model: ir.Model) -> list[Site]:
    """Return each layer whose only reader, layout operators aside, is a Mul by a constant."""
    shapes = concrete_shapes(model)
    return [site for linear in find_linears(model.graph) for site in _site(model, linear, shapes)]


def _site(model: ir.Model, linear: Linear, shapes: Shapes) -> list[Site]:
    shape = shapes.get(str(linear.output.name))
    if shape is None or not linear.output.uses():
        return []
    labels = channel_labels(shape, linear.channel_axis)
    found = trace(model.graph, linear.output, labels, shapes)
    if len(found.sinks) != 1 or found.outputs or found.sinks[0].node.op_type != "Mul":
        return []
    sink = found.sinks[0]
    factor = constant_of(other_input(sink.node, sink.node.inputs[sink.index]))
    if factor is None:
        return []
    return [Site(linear, sink.node, _by_channel(factor, sink.labels, linear.out_channels))]


def _by_channel(factor: Array, labels: Labels, count: int) -> Float64 | None:
    """Return the factor of each channel, or None where it is not a function of the channel."""
    try:
        spread = np.broadcast_to(factor, labels.shape)
    except ValueError:
        return None  # the factor widens the value
    result = np.ones(count)
    seen = labels >= 0
    result[labels[seen]] = spread[seen]
    return result if np.array_equal(result[labels[seen]], spread[seen]) else None


def applies(site: Site) -> str | None:
    """Return why the factor cannot be folded, or None where it can."""
    if site.factor is None:
        return "the factor is not one number per channel of the layer"
    if not bool(np.isfinite(site.factor).all()):
        return "the factor is not finite"
    return None


def apply_(model: ir.Model, site: Site) -> None:
    """Fold the factor of `site` into its layer and remove the Mul.

    Raises:
        ValueError: The fold does not apply; the message is that of `applies`.
    """
    reason = applies(site)
    if reason is not None or site.factor is None:
        raise ValueError(f"cannot fold {site.name}: {reason}")
    data = next(v for v in site.mul.inputs if constant_of(v) is None)
    if not replace_(model.graph, site.mul.outputs[0], data):
        raise ValueError(f"cannot fold {site.name}: its output cannot be renamed")
    scale_outputs_(model.graph, site.linear, site.factor)
    remove_dead_(model.graph)
