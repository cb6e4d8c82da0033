"""F3: scale (or flip the sign of) query channels and divide the key's by the same.

Wq' = diag(1/t) Wq, bq' = bq / t, Wk' = diag(t) Wk, bk' = t bk leave q . k as it was. Behind RoPE t
must be equal within each pair of channels that the rotation mixes; a norm of q or k undoes t.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import AttentionGraphSite, Projection, find_attention
from vitdeploy.graph.folds.parameters import checked_scale
from vitdeploy.graph.layout import Trace, concrete_shapes
from vitdeploy.graph.layout_ops import Through
from vitdeploy.graph.linear import scale_outputs_
from vitdeploy.graph.readership import trace_role
from vitdeploy.graph.surgery import Float64, Int

_LINEAR = Through(scalars=True, rotary=True)


@dataclass(frozen=True, eq=False)
class Site:
    """An attention and what keeps its query and key from being scaled."""

    attention: AttentionGraphSite
    reason: str | None
    groups: Int
    """(heads, head_dim): channels with the same number are mixed by RoPE and need one t."""

    @property
    def name(self) -> str:
        """The name of the attention."""
        return self.attention.name


def find(model: ir.Model) -> list[Site]:
    """Return the attention sites of `model`."""
    shapes = concrete_shapes(model)
    sites = []
    for attention in find_attention(model):
        shape = attention.query.columns.shape
        alone = np.arange(attention.query.columns.size).reshape(shape)
        if attention.has_qk_norm:
            sites.append(Site(attention, "a norm of the query or key undoes the scale", alone))
            continue
        query = trace_role(model, attention, "query", shapes, _LINEAR)
        key = trace_role(model, attention, "key", shapes, _LINEAR)
        if isinstance(query, str) or isinstance(key, str):
            reason = query if isinstance(query, str) else str(key)
            sites.append(Site(attention, reason, alone))
            continue
        sites.append(Site(attention, None, _groups(alone.reshape(-1), query, key).reshape(shape)))
    return sites


def _groups(numbers: Int, *traces: Trace) -> Int:
    """Return for each channel the smallest channel it is mixed with, directly or not."""
    links: set[tuple[int, int]] = set()
    for found in traces:
        for left, right in found.mixed:
            pairs = np.stack(np.broadcast_arrays(left, right), axis=-1).reshape(-1, 2)
            pairs = pairs[(pairs >= 0).all(axis=1)]
            links.update((int(a), int(b)) for a, b in np.unique(pairs, axis=0))
    result = numbers.copy()
    for _ in range(numbers.size):
        before = result.copy()
        for a, b in sorted(links):
            result[[a, b]] = min(result[a], result[b])
        if np.array_equal(before, result):
            break
    return result


def applies(site: Site) -> str | None:
    """Return why query and key cannot be scaled, or None where they can."""
    return site.reason


def apply_(model: ir.Model, site: Site, scale: Float64) -> None:
    """Divide the query's channels by `scale` and multiply the key's by it.

    Args:
        model: The model `site` is from.
        site: A site of `find`.
        scale: (heads, head_dim) float64, finite, not zero; negative flips signs. Behind RoPE it
            must be equal within each group of `site.groups`.

    Raises:
        ValueError: The fold does not apply, or `scale` is not as above.
    """
    if site.reason is not None:
        raise ValueError(f"cannot scale query and key of {site.name}: {site.reason}")
    factor = checked_scale(scale, site.groups.shape, site.name)
    if not np.array_equal(factor.reshape(-1)[site.groups], factor):
        raise ValueError(f"{site.name} has RoPE: the scale must be equal within each rotated pair")
    _scale_(model.graph, site.attention.query, 1.0 / factor)
    _scale_(model.graph, site.attention.key, factor)


def _scale_(graph: ir.Graph, projection: Projection, factor: Float64) -> None:
    whole = np.ones(projection.linear.out_channels)
    whole[projection.flat] = factor.reshape(-1)
    scale_outputs_(graph, projection.linear, whole)
