"""F5: scale and shift the value's channels and undo it in the output projection.

Wv' = diag(1/u) Wv, bv' = (bv - w) / u, Wo' = Wo diag(u), bo' = bo + Wo w. Rows of the softmax sum
to one, so a shift of v shifts the result by the same: exact only while the softmax stays in float,
for a quantised row does not sum to one.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import AttentionGraphSite, find_attention
from vitdeploy.graph.folds.parameters import checked, checked_scale
from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.layout_ops import LAYOUT, ZERO, Shapes
from vitdeploy.graph.linear import (
    bias_of,
    kernel_of,
    scale_inputs_,
    set_bias_,
    set_kernel_,
    shift_inputs_,
)
from vitdeploy.graph.readership import trace_role
from vitdeploy.graph.surgery import Float64


@dataclass(frozen=True, eq=False)
class Site:
    """An attention and what keeps its value from being scaled."""

    attention: AttentionGraphSite
    reason: str | None

    @property
    def name(self) -> str:
        """The name of the attention."""
        return self.attention.name


def find(model: ir.Model) -> list[Site]:
    """Return the attention sites of `model`."""
    shapes = concrete_shapes(model)
    return [Site(site, _reason(model, site, shapes)) for site in find_attention(model)]


def _reason(model: ir.Model, site: AttentionGraphSite, shapes: Shapes) -> str | None:
    if site.output is None or site.output_rows is None:
        return "no single output projection reads the result"
    if site.output.group != 1:
        return f"{site.output.name} reads the result channel by channel"
    found = trace_role(model, site, "value", shapes, LAYOUT)
    if isinstance(found, str):
        return found
    if any(sink.labels.min() == ZERO for sink in found.sinks if sink.node is site.context_matmul):
        return "the values are padded with zeros"
    return None


def applies(site: Site) -> str | None:
    """Return why the value cannot be scaled, or None where it can."""
    return site.reason


def shift_applies(site: Site, *, softmax_is_float: bool) -> str | None:
    """Return why the value cannot be shifted, or None where it can."""
    if site.reason is not None:
        return site.reason
    if not softmax_is_float:
        return "the softmax is quantised, so its rows do not sum to one"
    between = _guard(site.attention)
    if between is not None:
        return f"{between.op_type} {between.name} may change the sum of the softmax rows"
    return None


def _guard(attention: AttentionGraphSite) -> ir.Node | None:
    """Return a node between softmax and product that need not keep the row sums."""
    node = attention.context_matmul.inputs[0].producer()
    return node if node is not None and node is not attention.softmax else None


def apply_(
    model: ir.Model,
    site: Site,
    scale: Float64,
    shift: Float64 | None = None,
    *,
    softmax_is_float: bool = False,
) -> None:
    """Divide v by `scale` after subtracting `shift`, and undo it in the output projection.

    Args:
        model: The model `site` is from.
        site: A site of `find`.
        scale: (heads, head_dim) float64, finite, not zero.
        shift: (heads, head_dim) float64 in the units of v, or None for no shift.
        softmax_is_float: Whether the softmax's result will not be quantised; a shift needs it.

    Raises:
        ValueError: The fold does not apply, or `scale` or `shift` has the wrong shape or values.
    """
    moved = shift is not None and bool(np.any(shift))
    reason = shift_applies(site, softmax_is_float=softmax_is_float) if moved else applies(site)
    output, rows = site.attention.output, site.attention.output_rows
    if reason is not None or output is None or rows is None:
        raise ValueError(f"cannot fold the value of {site.name}: {reason}")
    value = site.attention.value
    factor = checked_scale(scale, value.columns.shape, site.name).reshape(-1)
    offset = np.zeros_like(factor)
    if shift is not None:
        offset = checked(shift, value.columns.shape, site.name).reshape(-1)
    _rescale_value_(model.graph, site.attention, factor, offset)
    into = np.ones(output.in_channels)
    into[rows.reshape(-1)] = factor
    if moved:
        back = np.zeros(output.in_channels)
        back[rows.reshape(-1)] = offset
        shift_inputs_(model.graph, output, back)
    scale_inputs_(model.graph, output, into)


def _rescale_value_(
    graph: ir.Graph, attention: AttentionGraphSite, factor: Float64, offset: Float64
) -> None:
    linear, flat = attention.value.linear, attention.value.flat
    kernel, bias = kernel_of(linear), bias_of(linear)
    kernel[flat] /= factor.reshape(-1, *[1] * (kernel.ndim - 1))
    bias[flat] = (bias[flat] - offset) / factor
    set_kernel_(graph, linear, kernel)
    set_bias_(graph, linear, bias)
