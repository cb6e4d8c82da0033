"""Which units stay, given their importance and the share that goes: plain ranking, no torch runs.

Units of one kind are ranked together, over all layers or within each; kinds (isomorphic groups,
arXiv 2407.04616) are never compared, since their scores have no common scale. Every layer keeps
one head, every MLP one step of its width, every list of blocks one block.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from vitdeploy.compress.prune.importance import Importance
from vitdeploy.compress.prune.units import (
    Kept,
    Sites,
    attention_kind,
    mlp_kind,
    width_step,
    without_blocks,
)
from vitdeploy.errors import CompressionError

Ranking = Literal["global", "layer"]


@dataclass(frozen=True)
class Shares:
    """What share of each kind of unit goes, 0 to below 1; and how units compete."""

    heads: float = 0.0
    mlp: float = 0.0
    blocks: float = 0.0
    ranking: Ranking = "global"
    width_multiple: int | None = None
    """Channels that go at a time; None is what suits each width, 64 at most."""


@dataclass(frozen=True)
class _Layer:
    """The units of one layer, which go in ascending order of score."""

    path: str
    scores: np.ndarray
    step: int = 1
    """Units that go together."""

    @property
    def steps(self) -> list[float]:
        """Mean score of each step that may go, ascending; the last step is never among them."""
        ordered = np.sort(self.scores)
        # a width that is no multiple of the step keeps the remainder
        count = max((len(ordered) - 1) // self.step, 0)
        return [float(ordered[i * self.step : (i + 1) * self.step].mean()) for i in range(count)]

    def kept_after(self, steps: int) -> tuple[int, ...]:
        """Return the units that stay when the `steps` lowest steps go, ascending."""
        order = np.argsort(self.scores, kind="stable")
        return tuple(sorted(int(unit) for unit in order[steps * self.step :]))


def select(
    module: nn.Module, sites: Sites, importance: Importance, shares: Shares, *, exact: bool = True
) -> Kept:
    """Return what stays.

    Args:
        module: has the layers of `sites`; only looked at.
        sites: all that can be removed.
        importance: of all units in `sites`.
        shares: of heads and channels of each kind; blocks go first, and heads and channels are
            counted in those that stay.
        exact: refuse a share that cannot be had; else come as near as can be.

    Raises:
        CompressionError: there is nothing of a kind that shall go, the share rounds to none, or
            more shall go than can.
    """
    removed = _lowest_blocks(sites, importance, shares.blocks, exact=exact)
    rest = without_blocks(sites, removed)
    if exact and shares.heads and not rest.attention and sites.notes:
        reasons = "; ".join(sites.notes)
        raise CompressionError(
            f"there are no heads to remove in this model ({reasons}); leave it out."
        )
    head_kinds: dict[str, list[_Layer]] = defaultdict(list)
    for site in rest.attention:
        layer = _Layer(site.path, importance.heads[site.path])
        head_kinds[attention_kind(module, site)].append(layer)
    mlp_kinds: dict[str, list[_Layer]] = defaultdict(list)
    for mlp in rest.mlp:
        step = width_step(mlp.width, shares.width_multiple)
        layer = _Layer(mlp.path, importance.channels[mlp.path], step)
        mlp_kinds[mlp_kind(module, mlp)].append(layer)
    return Kept(
        _kept_of(head_kinds.values(), shares.heads, shares.ranking, "heads", exact=exact),
        _kept_of(mlp_kinds.values(), shares.mlp, shares.ranking, "MLP channels", exact=exact),
        removed,
    )


def _lowest_blocks(
    sites: Sites, importance: Importance, share: float, *, exact: bool
) -> tuple[str, ...]:
    """Return the paths of the blocks that go, in the model's order."""
    count = round(share * len(sites.blocks))
    if not share:
        return ()
    containers = {path: path.rpartition(".")[0] for path in sites.blocks}
    left: dict[str, int] = defaultdict(int)
    for parent in containers.values():
        left[parent] += 1
    chosen: list[str] = []
    for path in sorted(sites.blocks, key=lambda path: importance.blocks[path]):
        if len(chosen) < count and left[containers[path]] > 1:
            left[containers[path]] -= 1
            chosen.append(path)
    if exact:
        most = len(sites.blocks) - len(left)
        _require_possible("blocks", share, len(sites.blocks), len(chosen), most)
    return tuple(path for path in sites.blocks if path in chosen)


def _kept_of(
    kinds: Iterable[Sequence[_Layer]], share: float, ranking: Ranking, what: str, *, exact: bool
) -> Mapping[str, tuple[int, ...]]:
    """Return by path the units that stay, of the layers that lose some."""
    kinds = list(kinds)
    if not share:
        return {}
    gone: dict[str, int] = {}
    for layers in kinds:
        groups = [layers] if ranking == "global" else [[layer] for layer in layers]
        for group in groups:
            gone |= _steps_gone(group, share)
    every = [layer for layers in kinds for layer in layers]
    if exact:
        total = sum(len(layer.scores) for layer in every)
        removed = sum(gone[layer.path] * layer.step for layer in every)
        most = sum(len(layer.steps) * layer.step for layer in every)
        _require_possible(what, share, total, removed, most)
    return {layer.path: layer.kept_after(gone[layer.path]) for layer in every if gone[layer.path]}


def _steps_gone(layers: Sequence[_Layer], share: float) -> dict[str, int]:
    """Return by path how many steps go, so that the units that go are nearest to the share."""
    wanted = share * sum(len(layer.scores) for layer in layers)
    ranked = sorted((score, layer.path, layer.step) for layer in layers for score in layer.steps)
    gone = {layer.path: 0 for layer in layers}
    removed = 0
    for _, path, step in ranked:
        if removed + step / 2 > wanted:
            break
        gone[path] += 1
        removed += step
    return gone


def _require_possible(what: str, share: float, total: int, removed: int, most: int) -> None:
    """Raise where `share` of `total` units cannot be had: `removed` would go, `most` could."""
    wanted = round(share * total)
    if not total:
        raise CompressionError(f"there are no {what} to remove in this model; leave it out.")
    if wanted > most:
        raise CompressionError(
            f"removing {share:g} of {total} {what} means {wanted}, but only {most} can go: each "
            f"layer keeps at least one. The largest share here is {most / total:.3f}."
        )
    if not removed:
        raise CompressionError(
            f"removing {share:g} of {total} {what} rounds to none; ask for a larger share, or "
            "leave the option out."
        )
