"""What got worse from one report to the next by more than it may: the gate of a release pipeline.

Time is judged by the ratio to the reference of the same run, which a slower or busier machine
leaves as it is, and by the clock only between runs on one kind of machine. Fidelity is judged in
points, size by its share, and what was measured before and is not any more has got worse.
"""

from dataclasses import dataclass

from vitdeploy.report.diff import Change, diff
from vitdeploy.report.schema import Report
from vitdeploy.report.summary import REFERENCE

_POINTS = {
    **dict.fromkeys(("top1", "top5", "agreement", "recall_at_1", "knn_top1"), 1.0),
    **dict.fromkeys(("mask_iou_mean", "boundary_iou_mean", "truth_iou_mean", "cosine_mean"), 100.0),
}
"""How many points 1 of a metric is; others (worst cases, decibels) are shown and not judged."""
_MACHINE = ("board", "cpu", "cores", "power_mode")
"""Facts of the environment that make times comparable."""


@dataclass(frozen=True)
class Limits:
    """How much worse a figure may get."""

    percent: float
    """Of its old value: time and size."""
    drop_points: float = 0.5
    """Of top-1, agreement, 100 x cosine, 100 x IoU."""


@dataclass(frozen=True)
class Regression:
    """A figure that got worse by more than allowed."""

    change: Change
    reason: str


def is_same_machine(before: Report, after: Report) -> bool:
    """Return whether times of both reports come from one kind of machine, as far as they tell."""
    return all(before.environment.get(key) == after.environment.get(key) for key in _MACHINE)


def regressions(before: Report, after: Report, limits: Limits) -> tuple[Regression, ...]:
    """Return what got worse by more than allowed, in the order of `diff`."""
    changes = diff(before, after)
    slower = {
        change.key
        for change in changes
        if change.section == "speedup"
        and (change.after is None or _percent(change) < -limits.percent)
    }
    ratios = {name for name, value in before.speedup.items() if value is not None}
    same = is_same_machine(before, after)
    found = []
    for change in changes:
        if change.before is None:
            continue
        if change.section == "latency":
            target = change.key.split("/")[0]
            by_clock = same and (target in slower or target not in ratios)
            reason = _time_reason(change, limits) if by_clock else None
        elif change.section == "speedup":
            reason = _ratio_reason(change, limits, before, after)
        else:
            reason = _other_reason(change, limits)
        if reason:
            found.append(Regression(change, reason))
    return tuple(found)


def _time_reason(change: Change, limits: Limits) -> str | None:
    if not change.key.endswith("/p50_ms") or change.key.startswith(f"{REFERENCE}/"):
        return None
    if change.after is None:
        return _GONE
    slower = _percent(change)
    if slower <= limits.percent:
        return None
    return f"{slower:.1f} % slower, {limits.percent:g} % allowed"


def _ratio_reason(change: Change, limits: Limits, before: Report, after: Report) -> str | None:
    """Return why the ratio to the reference is a loss: not where the reference alone got faster."""
    if change.after is None:
        return _GONE
    lost = -_percent(change)
    if lost <= limits.percent:
        return None
    if is_same_machine(before, after):
        times = [_target_ms(report, change.key) for report in (before, after)]
        if None not in times and times[1] <= times[0] * (1 + limits.percent / 100):  # type: ignore[operator]
            return None
    return f"{lost:.1f} % less speed-up, {limits.percent:g} % allowed"


def _other_reason(change: Change, limits: Limits) -> str | None:
    if change.section == "gates":
        return "the gate failed" if change.after == 0.0 else None
    if change.section == "fidelity":
        scale = _POINTS.get(change.key.rsplit("/", 1)[-1])
        if scale is None:
            return None
        if change.after is None:
            return _GONE
        lost = -scale * (change.delta or 0.0)
        if lost <= limits.drop_points:
            return None
        return f"{lost:.2f} points lost, {limits.drop_points:g} allowed"
    if change.key == REFERENCE:
        return None
    if change.after is None:
        return _GONE
    larger = _percent(change)
    if larger <= limits.percent:
        return None
    return f"{larger:.1f} % larger, {limits.percent:g} % allowed"


_GONE = "measured before, and not any more"


def _percent(change: Change) -> float:
    """Return by how many per cent of its old value a figure grew; both are known."""
    old, new = change.before or 0.0, change.after or 0.0
    if old == new:
        return 0.0
    return 100.0 * (new - old) / old if old else float("inf")


def _target_ms(report: Report, target: str) -> float | None:
    """Return the sum of a target's medians at its first batch, None where one is missing."""
    rows = [row for row in report.latency if row.target == target]
    first = {row.part: row for row in reversed(rows)}.values()
    times = [row.p50_ms for row in first]
    return sum(ms for ms in times if ms is not None) if rows and None not in times else None
