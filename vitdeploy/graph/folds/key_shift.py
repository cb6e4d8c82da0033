"""F4: shift key channels by a constant, which the softmax does not see.

q . (k + c) = q . k + q . c, and q . c is the same for every key of a row (bk' = bk + c). It takes
the two modes of a bimodal key together (PTQ4SAM 2405.03144). Not valid through RoPE or QK-norm.
"""

from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.attention import AttentionGraphSite, find_attention
from vitdeploy.graph.folds.parameters import checked
from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.layout_ops import ZERO, Shapes, Through
from vitdeploy.graph.linear import bias_of, set_bias_
from vitdeploy.graph.readership import trace_role
from vitdeploy.graph.surgery import Float64


@dataclass(frozen=True, eq=False)
class Site:
    """An attention and what keeps its key from being shifted."""

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
    if site.has_qk_norm:
        return "a norm of the query or key comes after the shift"
    if site.has_rope:
        return "RoPE turns the shift by a different angle at each token"
    found = trace_role(model, site, "key", shapes, Through(scalars=True))
    if isinstance(found, str):
        return found
    if any(sink.node is site.score_matmul and sink.labels.min() == ZERO for sink in found.sinks):
        return "the keys are padded with zeros, which the shift would not reach"
    return None


def applies(site: Site) -> str | None:
    """Return why the key cannot be shifted, or None where it can."""
    return site.reason


def apply_(model: ir.Model, site: Site, shift: Float64) -> None:
    """Add `shift` to the key's bias.

    Args:
        model: The model `site` is from.
        site: A site of `find`.
        shift: (heads, head_dim) float64, finite, in the units of the key layer's result.

    Raises:
        ValueError: The fold does not apply, or `shift` has the wrong shape or values.
    """
    if site.reason is not None:
        raise ValueError(f"cannot shift the key of {site.name}: {site.reason}")
    key = site.attention.key
    offset = checked(shift, key.columns.shape, site.name)
    bias = bias_of(key.linear)
    bias[key.flat] += offset.reshape(-1)
    set_bias_(model.graph, key.linear, bias)
