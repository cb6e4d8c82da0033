"""The Pareto front of points lost against cost, and which candidate on it to ship."""

from collections.abc import Sequence

from vitdeploy.advising.schema import AdviceRow, Objective

AS_CHEAP = 1.02
"""Costs this near to the least are the same, for timings vary: the more faithful one is chosen."""


def pareto_front(rows: Sequence[AdviceRow], objective: Objective) -> tuple[AdviceRow, ...]:
    """Return the rows that no other beats in one of points lost and cost and equals in the other.

    Cheapest first. Rows where one of the two was not measured are left out.
    """
    points = sorted(
        (
            (cost, row.drop_points, row)
            for row in rows
            if (cost := row.relative_cost(objective)) is not None and row.drop_points is not None
        ),
        key=lambda point: point[:2],
    )
    front: list[AdviceRow] = []
    least_lost = float("inf")
    for _, lost, row in points:
        if lost < least_lost:
            front.append(row)
            least_lost = lost
    return tuple(front)


def recommended_row(
    rows: Sequence[AdviceRow], objective: Objective, max_drop: float
) -> AdviceRow | None:
    """Return the cheapest row within `max_drop`, or None."""
    kept = [row for row in pareto_front(rows, objective) if (row.drop_points or 0.0) <= max_drop]
    if not kept:
        return None
    least = min(row.relative_cost(objective) or 0.0 for row in kept)
    same = [row for row in kept if (row.relative_cost(objective) or 0.0) <= least * AS_CHEAP]
    return min(same, key=lambda row: row.drop_points or 0.0)


def recommended_reason(rows: Sequence[AdviceRow], objective: Objective, max_drop: float) -> str:
    """Return why the recommended row was chosen, or why there is none."""
    row = recommended_row(rows, objective, max_drop)
    if row is not None:
        share = row.relative_cost(objective) or 0.0
        return (
            f"{row.name}: {100 * share:.0f} % of the FP32 reference's {objective}, "
            f"{row.drop_points:.2f} points of {row.drop_metric} lost, {max_drop:g} allowed"
        )
    judged = [row for row in rows if row.drop_points is not None]
    if not judged:
        return "nothing could be built and compared; the reasons are in the table"
    if not pareto_front(judged, objective):
        return f"the {objective} of nothing could be measured; the reasons are in the table"
    best = min(judged, key=lambda row: row.drop_points or 0.0)
    return (
        f"nothing loses {max_drop:g} points or less; the most faithful is {best.name} with "
        f"{best.drop_points:.2f}. Allow more with --max-drop, give more calibration images, or "
        "distil first"
    )
