"""Limits a run must keep: the recipe's gates against what was measured."""

from collections.abc import Mapping, Sequence

from vitdeploy.evaluation import drop_points
from vitdeploy.recipe import GateSection
from vitdeploy.report import FidelityRow, GateRow


def check_gates(
    gates: GateSection,
    targets: Sequence[str],
    fidelity: Sequence[FidelityRow],
    speedup: Mapping[str, float | None],
    latency_ms: Mapping[str, float | None],
) -> list[GateRow]:
    """Return one row per gate and target; a gate whose value was not measured fails."""
    rows = []
    for target in targets:
        if gates.max_drop_points is not None:
            lost = drop_points(fidelity, target)
            value = None if lost is None else lost[1]
            kept = value is not None and value <= gates.max_drop_points
            metric = "fidelity" if lost is None else lost[0]
            rows.append(
                _row(f"max_drop_points:{target}:{metric}", gates.max_drop_points, value, kept)
            )
        if gates.min_speedup is not None:
            value = speedup.get(target)
            kept = value is not None and value >= gates.min_speedup
            rows.append(_row(f"min_speedup:{target}", gates.min_speedup, value, kept))
        if gates.max_latency_ms is not None:
            value = latency_ms.get(target)
            kept = value is not None and value <= gates.max_latency_ms
            rows.append(_row(f"max_latency_ms:{target}", gates.max_latency_ms, value, kept))
    return rows


def _row(name: str, limit: float, value: float | None, passed: bool) -> GateRow:
    reason = None if value is not None else "not measured, so the gate cannot pass"
    return GateRow(name=name, limit=limit, value=value, value_reason=reason, passed=passed)
