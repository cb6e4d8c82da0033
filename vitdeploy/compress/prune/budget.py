"""The smallest share of heads and channels with which a model meets a limit, by bisection.

What a limit is about, and how it is measured, the caller says. A measured latency is noisy: its
bisection is coarse, and what it ends at is measured again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vitdeploy.compress.prune.selection import Shares
from vitdeploy.compress.prune.units import Kept
from vitdeploy.errors import CompressionError

_STEPS = 10
_MEASURED_STEPS = 6
"""1.6 % of the heads and channels; what one such step saves is within the noise of a latency."""
_MOST = 0.999


@dataclass(frozen=True)
class Limit:
    """What the pruned model shall not exceed."""

    name: str
    """For messages: GMACs, parameters, milliseconds."""
    most: float
    measure: Callable[[Kept], float]
    """What a model has once only `Kept` stays."""
    is_noisy: bool = False
    """Whether measuring twice gives two values."""


@dataclass(frozen=True)
class Reached:
    """The smallest shares that meet a limit."""

    shares: Shares
    kept: Kept
    whole: float
    """What the whole model has."""
    value: float
    """What the model has with `kept` alone."""


def smallest_shares(shares: Shares, limit: Limit, choose: Callable[[Shares], Kept]) -> Reached:
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

    def tried(share: float) -> Reached:
        asked = replace(shares, heads=share, mlp=share)
        kept = choose(asked)
        return Reached(asked, kept, whole, limit.measure(kept))

    met = [tried(_MOST)]
    if met[0].value > limit.most:
        raise CompressionError(
            f"{limit.most:.4g} {limit.name} cannot be reached: with one head and one step of "
            f"width in every layer the model still has {met[0].value:.4g} (whole: {whole:.4g}). "
            "Ask for at least that, or prune blocks too."
        )
    low, high = 0.0, _MOST
    for _ in range(_MEASURED_STEPS if limit.is_noisy else _STEPS):
        middle = (low + high) / 2
        found = tried(middle)
        if found.value <= limit.most:
            high = middle
            met.append(found)
        else:
            low = middle
    return _confirmed(met, limit) if limit.is_noisy else met[-1]


def _confirmed(met: Sequence[Reached], limit: Limit) -> Reached:
    """Return the smallest that meets the limit once more; the first of `met` removes the most.

    Raises:
        CompressionError: none does.
    """
    for found in reversed(met):
        again = replace(found, value=limit.measure(found.kept))
        if again.value <= limit.most:
            return again
    raise CompressionError(
        f"{limit.most:.4g} {limit.name} was reached once and not again, with as little left as can "
        "be: the machine is busy, or the limit is at its edge. Ask for more, or try again later."
    )
