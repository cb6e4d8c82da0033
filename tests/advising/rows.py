"""Rows of candidates as if they had been tried, for the tests of this folder."""

from typing import Any

from vitdeploy.advising.candidates import ORIGINAL
from vitdeploy.advising.schema import AdviceRow


def tried_row(name: str, drop: float | None, share: float | None, **changes: Any) -> AdviceRow:
    """A finished candidate `[VARIANT] PRECISION TARGET` with `share` of the reference's cost."""
    variant, precision, target = [ORIGINAL, *name.split()][-3:]
    values: dict[str, Any] = {
        "name": name,
        "variant": variant,
        "precision": precision,
        "target": target,
        "status": "done",
        "kept_precision": precision,
        "drop_points": drop,
        "drop_metric": None if drop is None else "top1",
        "latency_ms": None if share is None else 8.0 * share,
        "reference_ms": 8.0,
        "size_bytes": None if share is None else int(1e6 * share),
        "reference_bytes": 1_000_000,
    }
    return AdviceRow(**{**values, **changes})
