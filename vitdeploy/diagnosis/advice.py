"""What to do about a diagnosis: which products to keep in float, what that brings, what else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitdeploy.diagnosis.schema import Advice, Coverage, NormRow, OverflowRow, SiteRow

LEAST_GAIN_DB = 1.0
"""Below this, keeping products in float is not worth their speed."""
LEAST_STEP_DB = 0.5
"""What each further product must bring."""
OUT_OF_PROPORTION = 2.0
"""A product is at fault where it makes this many times the average product's share."""
LEAST_INT8_PERCENT = 80.0
MOST_NAMES = 5
CLIPPED_FROM_PERCENT = 2.0
"""The search for the range of least error clips up to about 1 % on purpose."""
OUTLIERS_FROM = 20.0
"""Post-LN largest over median above which per-tensor INT8 loses bits; folds reach about 5."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one part."""

    output_db: float
    sites: Sequence[SiteRow]
    """Worst first."""
    norms: Sequence[NormRow]
    coverage: Coverage
    fp16: Sequence[OverflowRow]


def advise(evidence: Evidence, output_db: Callable[[Sequence[str]], float] | None) -> Advice:
    """Return what to do.

    Args:
        evidence: of one part.
        output_db: the output's SQNR with the named products in float; None where measuring it
            would take too long.
    """
    names, expected = _worth_in_float(evidence, output_db)
    lines = [*_float_lines(evidence, names, expected), *_other_lines(evidence)]
    reason = None if expected is not None else "no product in float brings enough"
    if names and expected is None:
        reason = "measuring it exceeds the budget"
    return Advice(
        keep_float=names, expected_db=expected, expected_db_reason=reason, lines=tuple(lines)
    )


def _worth_in_float(
    evidence: Evidence, output_db: Callable[[Sequence[str]], float] | None
) -> tuple[tuple[str, ...], float | None]:
    """Return the products to keep in float, worst first, and the output's SQNR then."""
    quantized = [row.name for row in evidence.sites if row.is_int8]
    shares = {row.name: row.output_share_percent for row in evidence.sites}
    if output_db is None:
        return tuple(quantized[:1]), None
    names: list[str] = []
    # Measured on fewer images than the output's SQNR, so it is the difference that counts.
    start = best = output_db([])
    fair_percent = 100.0 / max(len(quantized), 1)
    for name in quantized[:MOST_NAMES]:
        share = shares[name]
        if share is not None and share < OUT_OF_PROPORTION * fair_percent:
            break
        if len(names) == len(quantized) - 1:
            break
        reached = output_db([*names, name])
        if reached - best < LEAST_STEP_DB:
            break
        names.append(name)
        best = reached
    if best - start < LEAST_GAIN_DB:
        return (), None
    return tuple(names), evidence.output_db + best - start


def _float_lines(evidence: Evidence, names: tuple[str, ...], expected: float | None) -> list[str]:
    quantized = [row for row in evidence.sites if row.is_int8]
    if not names:
        worst = quantized[0]
        share = worst.output_share_percent
        part = "" if share is None else f", the worst one {share:.0f} % of it"
        return [
            f"The error is spread over {len(quantized)} products{part}: keeping a few in float "
            "gains little. More calibration images like those it will see may help."
        ]
    listed = ", ".join(f'"{name}"' for name in names)
    gain = "what that gains was not measured (see --seconds)"
    if expected is not None:
        gain = f"output SQNR {evidence.output_db:.1f} -> about {expected:.1f} dB"
    lines = [
        f"Keep in float: {', '.join(names)} ({gain}).",
        f"In the bundle's recipe.yaml put  keep_float: [{listed}]  under int8, delete "
        "int8.choices, and run it: vitdeploy run recipe.yaml --output DIR",
    ]
    left = _int8_percent_without(evidence, names)
    if left is not None and left < LEAST_INT8_PERCENT:
        lines.append(
            f"That leaves {left:.0f} % of the MACs in INT8, below the {LEAST_INT8_PERCENT:.0f} % "
            "that --int8 promises: expect less speed."
        )
    return lines


def _int8_percent_without(evidence: Evidence, names: Sequence[str]) -> float | None:
    macs = {row.name: row.macs for row in evidence.sites}
    total = sum(count or 0 for count in macs.values())
    if not total or any(count is None for count in macs.values()):
        return None
    kept = sum(row.macs or 0 for row in evidence.sites if row.is_int8 and row.name not in names)
    return 100.0 * kept / total


def _other_lines(evidence: Evidence) -> list[str]:
    lines = []
    clipped = [r for r in evidence.sites if (r.clipped_percent or 0.0) >= CLIPPED_FROM_PERCENT]
    if clipped:
        worst = max(clipped, key=lambda row: row.clipped_percent or 0.0)
        lines.append(
            f"{worst.clipped_percent:.1f} % of what {worst.name} reads lies outside its range: "
            "these images are not like the calibration images. Calibrate on images like these, "
            "or with int8.clip: minmax."
        )
    rough = [row for row in evidence.norms if row.after is not None and row.after > OUTLIERS_FROM]
    if rough:
        norm = max(rough, key=lambda row: row.after or 0.0)
        lines.append(
            f"{norm.name} still has channels {norm.after:.0f} times the median: no fold applied "
            "(int8.folds: search), or its readers stay in float."
        )
    overflowing = [row for row in evidence.fp16 if row.overflows]
    if overflowing:
        first = overflowing[0]
        lines.append(
            f"{len(overflowing)} tensor(s) exceed FP16's 65504 (the {first.quantity} of "
            f"{first.name}: {first.max_abs:.3g}): leave these in FP32 or BF16 where the rest is "
            "FP16."
        )
    return lines
