"""Queries and keys made ready for INT8, exactly: shifts and outliers taken out by F4 and F3.

q and k get one range each (or all of q, k and v one) in INT8 attention. A shift of the keys, which
the softmax does not see, takes up its codes, and so does a channel that is large in one of the two
and small in the other. What is folded follows from the extremes of few images; a fold is only made
where the estimated error of the scores falls clearly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.calibrate import (
    Batches,
    ChannelStatistics,
    Probe,
    collect_statistics,
    limited,
)
from vitdeploy.graph.attention import AttentionGraphSite, Projection
from vitdeploy.graph.attention_qdq import tokens_of
from vitdeploy.graph.folds import key_shift, query_key_scale
from vitdeploy.graph.qdq import QuantScheme

WORTH_FOLDING = 0.8
"""Of the estimated error without a fold: what is left must be below this share."""
_IMAGES = 16
_SMALLEST = 1e-6
"""Share of the largest magnitude below which a channel counts as silent and is not scaled."""


@dataclass(frozen=True)
class AttentionFold:
    """What was done to one attention."""

    site: str
    fold: str
    """Key of `graph.folds.FOLDS`."""


@dataclass(frozen=True, eq=False)
class _Heads:
    """What q or k does, by channel of its heads."""

    low: np.ndarray
    high: np.ndarray
    power: np.ndarray
    """Mean square; each (heads * head_dim,) float64."""

    @property
    def size(self) -> np.ndarray:
        """(heads * head_dim,) largest magnitude."""
        largest: np.ndarray = np.maximum(np.abs(self.low), np.abs(self.high))
        return largest

    def scaled(self, factor: np.ndarray) -> "_Heads":
        """Return the same of every channel times its positive factor."""
        return _Heads(self.low * factor, self.high * factor, self.power * np.square(factor))


def fold_attention_(
    model: ir.Model, scheme: QuantScheme, batches: Batches
) -> tuple[AttentionFold, ...]:
    """Shift keys and balance queries and keys in place, where INT8 attention may follow.

    The function stays the same. Attention behind a convolution is left as it is.

    Args:
        model: FP32 graph.
        scheme: how many tokens INT8 attention takes at most, and whether q, k and v share a range.
        batches: a pass over the calibration images; 16 are read.
    """
    shifts = [site for site in key_shift.find(model) if _may_be_int8(site.attention, scheme)]
    if not shifts:
        return ()
    sites = {site.name: site for site in query_key_scale.find(model)}
    parts = [p for s in shifts for p in (s.attention.query, s.attention.key)]
    statistics = collect_statistics(model, _probes(parts), limited(batches, _IMAGES))
    done: list[AttentionFold] = []
    for site in shifts:
        query, key = (
            _heads(statistics, part) for part in (site.attention.query, site.attention.key)
        )
        shift = (key.low + key.high) / 2.0
        centred = _shifted(statistics, site.attention.key, shift)
        shape = site.attention.key.columns.shape
        packs = scheme.packs_attention
        before = _error(query, key, packs)
        if key_shift.applies(site) is None and _error(query, centred, packs) < (
            WORTH_FOLDING * before
        ):
            key_shift.apply_(model, site, -shift.reshape(shape))
            done.append(AttentionFold(site.name, "key_shift"))
            key, before = centred, _error(query, centred, packs)
        pair = sites[site.name]
        if query_key_scale.applies(pair) is not None:
            continue
        factor = _balance(query, key, pair.groups.reshape(-1))
        if _error(query.scaled(1.0 / factor), key.scaled(factor), packs) < WORTH_FOLDING * before:
            query_key_scale.apply_(model, pair, factor.reshape(shape))
            done.append(AttentionFold(site.name, "query_key_scale"))
    return tuple(done)


def _may_be_int8(attention: AttentionGraphSite, scheme: QuantScheme) -> bool:
    tokens = tokens_of(attention)
    layers = (attention.query.linear, attention.key.linear)
    return (
        tokens is not None
        and tokens <= scheme.most_int8_attention_tokens
        and all(linear.node.op_type != "Conv" for linear in layers)
    )


def _probes(parts: Sequence[Projection]) -> list[Probe]:
    outputs = {str(part.linear.output.name): part.linear.output for part in parts}
    return [
        Probe(name, -1, len(value.shape) if value.shape is not None else 3)
        for name, value in outputs.items()
    ]


def _heads(statistics: dict[str, ChannelStatistics], part: Projection) -> _Heads:
    own = statistics[str(part.linear.output.name)]
    return _Heads(
        own.low[part.flat].astype(np.float64),
        own.high[part.flat].astype(np.float64),
        own.square[part.flat],
    )


def _shifted(
    statistics: dict[str, ChannelStatistics], part: Projection, shift: np.ndarray
) -> _Heads:
    whole = np.zeros(part.linear.out_channels)
    whole[part.flat] = shift
    name = str(part.linear.output.name)
    return _heads({name: statistics[name].folded(np.ones_like(whole), whole)}, part)


def _error(query: _Heads, key: _Heads, packs: bool) -> float:
    """Return the squared error of the scores up to a constant: each one's step on the other."""
    steps = float(query.size.max()), float(key.size.max())
    if packs:
        steps = (max(steps), max(steps))
    return steps[0] ** 2 * float(key.power.sum()) + steps[1] ** 2 * float(query.power.sum())


def _balance(query: _Heads, key: _Heads, groups: np.ndarray) -> np.ndarray:
    """Return by channel what the key is multiplied by for both to be equally large.

    Args:
        query: before.
        key: before.
        groups: (heads * head_dim,) channels that RoPE mixes have one number and get one factor.
    """
    logarithm = np.zeros(len(groups))
    loud = (query.size > _SMALLEST * query.size.max()) & (key.size > _SMALLEST * key.size.max())
    logarithm[loud] = 0.5 * np.log(query.size[loud] / key.size[loud])
    members = np.bincount(groups, minlength=len(groups))
    mean = np.bincount(groups, logarithm, len(groups)) / np.maximum(members, 1)
    factor: np.ndarray = np.exp(mean[groups])
    return factor
