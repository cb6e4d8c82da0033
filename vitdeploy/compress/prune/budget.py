"""The smallest share of heads and channels with which a model meets a limit, by bisection."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vitdeploy.compress.prune.selection import Shares
from vitdeploy.compress.prune.units import Kept
from vitdeploy.errors import CompressionError

_STEPS = 10
_MOST = 0.999


@dataclass(frozen=True)
class Limit:
    """What the pruned model shall not exceed."""

    name: str
    """For messages: GMACs, parameters, milliseconds."""
    most: float
    measure: Callable[[Kept], float]
    """What a model has once only `Kept` stays."""


def smallest_shares(
    shares: Shares, limit: Limit, choose: Callable[[Shares], Kept]
) -> tuple[Shares, Kept]:
    """Return the smallest equal share of heads and channels that meets `limit`, and what stays.

    Args:
        shares: how units compete; its heads and mlp are not read.
        limit: what is to be met.
        choose: returns what stays for some shares; as near as can be.

    Raises:
        CompressionError: the whole model meets the limit already, or no share does.
    """
    whole = limit.measure(Kept())
    if whole <= limit.most:
        raise CompressionError(
            f"the model has {whole:.4g} {limit.name}, no more than the {limit.most:.4g} asked for: "
            "there is nothing to prune. Ask for less, or leave pruning out."
        )

    def tried(share: float) -> tuple[Shares, Kept, float]:
        asked = replace(shares, heads=share, mlp=share)
        kept = choose(asked)
        return asked, kept, limit.measure(kept)

    best_shares, best, value = tried(_MOST)
    if value > limit.most:
        raise CompressionError(
            f"{limit.most:.4g} {limit.name} cannot be reached: with one head and one step of "
            f"width in every layer the model still has {value:.4g} (whole: {whole:.4g}). Ask for "
            "at least that, or prune blocks too."
        )
    low, high = 0.0, _MOST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        asked, kept, value = tried(middle)
        if value <= limit.most:
            high, best_shares, best = middle, asked, kept
        else:
            low = middle
    return best_shares, best
