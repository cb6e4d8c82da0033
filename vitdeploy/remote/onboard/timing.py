"""Turns of one engine: warm-up until its time stops falling, and slots of timed runs.

Which engine's turn it is, the other side says; between two turns nothing of ours runs here.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .engines import Engine

_SLOW_SECONDS = 1.0
"""A run this long is not repeated to warm up."""
_WINDOW_SECONDS = 0.1
_WINDOW_RUNS = 3
_STILL_FALLING = 0.97
"""A window is faster than all before it where its median is below this share of theirs."""
_MOST_WARMUP_SECONDS = 10.0
_FORGET_PEAK = "5"
"""What proc(5) takes to set the peak of the resident memory to the present size."""


def warm_up(engine: Engine, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Run until the time stops falling; return the first run's and the fastest one's."""
    start = time.perf_counter()
    first_ms = fastest_ms = runs_until(engine, feeds, start)[0]
    runs, medians, is_warm = 1, [first_ms], False
    while not is_warm and fastest_ms < 1000.0 * _SLOW_SECONDS:
        now = time.perf_counter()
        if now - start > _MOST_WARMUP_SECONDS:
            break
        window = runs_until(engine, feeds, now + _WINDOW_SECONDS)
        while len(window) < _WINDOW_RUNS:
            window += runs_until(engine, feeds, now)
        runs += len(window)
        fastest_ms = min(fastest_ms, *window)
        middle = statistics.median(window)
        is_warm = middle >= _STILL_FALLING * min(medians)
        medians.append(middle)
    return {
        "first_ms": first_ms,
        "runs": runs,
        "is_warm": is_warm,
        "run_seconds": fastest_ms / 1000.0,
    }


def slot(engine: Engine, feeds: Mapping[str, Any], seconds: float, run_seconds: float) -> Any:
    """Return the milliseconds of runs for about `seconds`, and how long that took.

    Args:
        engine: warm.
        feeds: of one run.
        seconds: of the turn; one run is made all the same.
        run_seconds: what a run takes; after a pause a short one is run once untimed.
    """
    if run_seconds < _SLOW_SECONDS:
        engine(feeds)
    start = time.perf_counter()
    samples = runs_until(engine, feeds, start + seconds)
    return {"latencies_ms": samples, "seconds": time.perf_counter() - start}


def runs_until(engine: Engine, feeds: Mapping[str, Any], end: float) -> list[float]:
    """Return the milliseconds of runs until the clock passes `end`, of one at least."""
    samples: list[float] = []
    after = time.perf_counter()
    while not samples or after < end:
        before = after
        engine(feeds)
        after = time.perf_counter()
        samples.append(1000.0 * (after - before))
    return samples


def forget_peak() -> str | None:
    """Make `peak_bytes` begin anew; return None, or why this system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text(_FORGET_PEAK, encoding="ascii")
    except OSError as error:
        return f"the device does not let the peak be reset ({error.strerror})"
    return None


def resident_bytes(peak: bool) -> int:
    """Return this process's resident memory, or its highest since `forget_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
