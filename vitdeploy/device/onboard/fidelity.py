"""How close an engine's outputs are to the golden ones; the verdict that decides over an engine.

The same function sets the tolerance when a package is written and judges the engine on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OutputScore:
    """One output over all golden images."""

    sqnr_db: float | None
    """Signal to noise, both centred over the images where there are two or more; None where the
    outputs are equal."""
    cosine_min: float | None
    """Smallest over the images, uncentred; None where a vector is zero or not finite."""
    max_abs_diff: float | None
    """None where a value is NaN or infinite."""
    nonfinite: int
    """How many values the engine gave that are NaN or infinite."""


def score_output(
    expected: Sequence[Sequence[float]], seen: Sequence[Sequence[float]]
) -> OutputScore:
    """Return the score of one output; a row is one image, flat.

    Raises:
        ValueError: rows differ in number or length, or there are none.
    """
    if not expected or [len(row) for row in expected] != [len(row) for row in seen]:
        raise ValueError("golden rows and the engine's rows differ in number or length")
    nonfinite = sum(1 for row in seen for value in row if not math.isfinite(value))
    if nonfinite:
        return OutputScore(None, None, None, nonfinite)
    noise, largest = 0.0, 0.0
    cosines = []
    for index, row in enumerate(expected):
        differences = [value - seen[index][i] for i, value in enumerate(row)]
        noise += math.fsum(d * d for d in differences)
        largest = max(largest, max((abs(d) for d in differences), default=0.0))
        cosines.append(_cosine(row, seen[index]))
    signal = _signal(expected)
    known = [value for value in cosines if value is not None]
    if noise == 0.0:
        ratio = None
    elif signal == 0.0:
        ratio = -math.inf
    else:
        ratio = 10.0 * math.log10(signal / noise)
    return OutputScore(ratio, min(known) if known else None, largest, 0)


def is_faithful(score: OutputScore, min_sqnr_db: float) -> bool:
    """Return whether the output is finite and as close as the package asks."""
    return score.nonfinite == 0 and (score.sqnr_db is None or score.sqnr_db >= min_sqnr_db)


def score_row(name: str, score: OutputScore, min_sqnr_db: float) -> dict[str, Any]:
    """Return the score as JSON: what is missing is null beside a reason."""
    passed = is_faithful(score, min_sqnr_db)
    reason = None
    if score.nonfinite:
        reason = f"{score.nonfinite} values are NaN or infinite"
    elif score.sqnr_db is None:
        reason = "equal to the golden output"
    elif score.sqnr_db == -math.inf:
        reason = "the golden output is zero, the engine's is not"
    is_number = score.sqnr_db is not None and math.isfinite(score.sqnr_db)
    return {
        "output": name,
        "passed": passed,
        "sqnr_db": score.sqnr_db if is_number else None,
        "sqnr_db_reason": reason,
        "min_sqnr_db": min_sqnr_db,
        "cosine_min": score.cosine_min,
        "max_abs_diff": score.max_abs_diff,
        "nonfinite": score.nonfinite,
    }


def _signal(rows: Sequence[Sequence[float]]) -> float:
    """Return the power of what differs between images, of all where there is one image only."""
    first = rows[0]
    power = 0.0
    if len(rows) > 1 and all(len(row) == len(first) for row in rows):
        count = len(rows)
        means = [math.fsum(row[i] for row in rows) / count for i in range(len(first))]
        power = math.fsum((row[i] - mean) ** 2 for row in rows for i, mean in enumerate(means))
    # Equal images leave nothing when centred; then the outputs themselves are the signal.
    return power or math.fsum(value * value for row in rows for value in row)


def _cosine(expected: Sequence[float], seen: Sequence[float]) -> float | None:
    dot = math.fsum(value * seen[i] for i, value in enumerate(expected))
    norms = math.fsum(v * v for v in expected) * math.fsum(v * v for v in seen)
    return dot / math.sqrt(norms) if norms > 0.0 else None
