"""Limits a run must keep: the recipe's gates against what was measured."""

from collections.abc import Mapping, Sequence

from vitdeploy.evaluation import drop_points, find_value
from vitdeploy.recipe import GateSection
from vitdeploy.report import FidelityRow, GateRow

FAITHFUL_DROP_POINTS = 0.5
"""Without a gate: the top-1 an artefact may lose where images have labels."""
FAITHFUL_MASK_IOU = 0.98
"""Without a gate, of a model that segments: the least mean IoU with the reference's masks."""
FAITHFUL_COSINE = 0.999
"""Without a gate and without labels: the least mean cosine of centred outputs."""


def is_within_gate(gates: GateSection, fidelity: Sequence[FidelityRow], target: str) -> bool:
    """Return whether `max_drop_points` holds; true where there is no such gate."""
    lost = drop_points(fidelity, target)
    limit = gates.max_drop_points
    return limit is None or lost is None or lost[1] <= limit


def unfaithful_reason(
    gates: GateSection, fidelity: Sequence[FidelityRow], target: str
) -> str | None:
    """Return why an artefact is not close enough to FP32; None where it is.

    The measure is the recipe's `max_drop_points`, or `FAITHFUL_DROP_POINTS` of top-1, or
    `FAITHFUL_MASK_IOU`, or `FAITHFUL_COSINE`: the first of these that there is.
    """
    if gates.max_drop_points is not None:
        lost = drop_points(fidelity, target)
        if lost is None:
            return "one image does not show its fidelity"
        if lost[1] > gates.max_drop_points:
            return f"{lost[1]:.2f} points of {lost[0]} lost, {gates.max_drop_points:g} allowed"
        return None
    top1 = find_value(fidelity, target, "top1")
    if top1 is not None and top1.delta is not None:
        kept = -top1.delta <= FAITHFUL_DROP_POINTS
        return None if kept else f"{-top1.delta:.2f} points of top-1 lost"
    masks = find_value(fidelity, target, "mask_iou_mean")
    if masks is not None and masks.value is not None:
        kept = masks.value >= FAITHFUL_MASK_IOU
        return None if kept else f"mask IoU {masks.value:.4f}, {FAITHFUL_MASK_IOU} needed"
    cosine = find_value(fidelity, target, "cosine_mean")
    if cosine is None or cosine.value is None:
        return "one image does not show its fidelity"
    kept = cosine.value >= FAITHFUL_COSINE
    return None if kept else f"centred cosine {cosine.value:.4f}, {FAITHFUL_COSINE} needed"


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
