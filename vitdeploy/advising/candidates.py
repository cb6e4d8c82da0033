"""What can be shipped: a precision on a target, of the model or of a pruned variant of it.

Here too is which one is tried next. Trying is `trial`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitdeploy.advising.schema import AdviceRow, Objective
from vitdeploy.recipe import PRECISIONS, TargetName

ORIGINAL = "original"
"""The variant from which nothing was removed."""
PRECISIONS_TRIED = tuple(name for name in PRECISIONS if name != "auto")
_USUAL_SHARE: Mapping[Objective, Mapping[str, float]] = {
    "latency": {"int8": 0.5, "bf16": 0.6, "w4a8": 0.8, "fp16": 0.95, "w4a16": 1.0},
    "energy": {"int8": 0.5, "bf16": 0.6, "w4a8": 0.8, "fp16": 0.95, "w4a16": 1.0},
    "size": {"w4a16": 0.15, "w4a8": 0.15, "int8": 0.25, "fp16": 0.5, "bf16": 0.5},
}
"""Of FP32's cost, before anything is known: only the order of trying follows from it."""


@dataclass(frozen=True)
class Candidate:
    """One thing that might be shipped."""

    variant: str
    """`ORIGINAL`, or the name of a pruned variant."""
    precision: str
    target: TargetName

    @property
    def name(self) -> str:
        """Return what people read: `int8 openvino`, `pruned-25 int8 openvino`."""
        own = f"{self.precision} {self.target}"
        return own if self.variant == ORIGINAL else f"{self.variant} {own}"


def all_candidates(
    variants: Sequence[str], precisions: Sequence[str], targets: Sequence[TargetName]
) -> tuple[Candidate, ...]:
    """Return every combination; variants, precisions and targets in the order given."""
    return tuple(Candidate(v, p, t) for v in variants for p in precisions for t in targets)


def next_candidate(
    waiting: Sequence[Candidate], rows: Sequence[AdviceRow], objective: Objective
) -> Candidate:
    """Return the one whose result tells most.

    First FP32 wherever it was not tried: it costs least, says how fast each target is, and rules
    out a pruned variant that lost too much already. Then the one with the best prospects, for only
    that can change the recommendation.
    """
    anchors = [item for item in waiting if item.precision == "fp32"]
    if anchors:
        return anchors[0]
    return min(waiting, key=lambda item: forecast(item, rows, objective))


def forecast(candidate: Candidate, rows: Sequence[AdviceRow], objective: Objective) -> float:
    """Return what a candidate will probably cost, as a share of the FP32 reference's cost.

    Its variant's FP32 on its target, times what its precision took of FP32's cost on that target
    where another variant was tried, else `_USUAL_SHARE`.
    """
    known = {
        (row.variant, row.precision, row.target): share
        for row in rows
        if (share := row.relative_cost(objective)) is not None
    }
    own, precision, target = candidate.variant, candidate.precision, candidate.target
    original = known.get((ORIGINAL, "fp32", target), 1.0)
    base = known.get((own, "fp32", target), original)
    shares = [
        cost / known[variant, "fp32", target]
        for (variant, tried, place), cost in known.items()
        if (tried, place) == (precision, target) and known.get((variant, "fp32", target))
    ]
    usual = _USUAL_SHARE[objective].get(precision, 1.0)
    return base * (sum(shares) / len(shares) if shares else usual)


def skip_reason(candidate: Candidate, rows: Sequence[AdviceRow], max_drop: float) -> str | None:
    """Return why a candidate need not be tried: its variant has lost too much in FP32 already."""
    own = [row for row in rows if (row.variant, row.precision) == (candidate.variant, "fp32")]
    lost = max((row.drop_points for row in own if row.drop_points is not None), default=0.0)
    if lost <= max_drop:
        return None
    return f"{candidate.variant} loses {lost:.2f} points in FP32 already, {max_drop:g} allowed"
