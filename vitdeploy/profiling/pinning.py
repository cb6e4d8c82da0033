"""Keeping a measurement on a few CPUs: as many as threads were asked for, the idlest ones."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_LOOK_SECONDS = 0.2


@contextmanager
def pinned(threads: int | None) -> Iterator[tuple[tuple[int, ...] | None, str | None]]:
    """Keep this process, and those it starts, on `threads` CPUs while inside.

    Yields the CPUs and None, or None and why nothing was pinned. What was before is set again.
    """
    if threads is None:
        yield None, "no --threads were asked for"
        return
    if not hasattr(os, "sched_setaffinity"):
        yield None, "this system has no call to pin a process"
        return
    before = os.sched_getaffinity(0)
    if threads > len(before):
        yield None, f"{threads} threads are more than the {len(before)} CPUs there are"
        return
    chosen = _idlest(sorted(before), threads)
    os.sched_setaffinity(0, chosen)
    try:
        yield tuple(sorted(chosen)), None
    finally:
        os.sched_setaffinity(0, before)


def _idlest(allowed: list[int], count: int) -> list[int]:
    """Return `count` CPUs, on as many cores as can be, the idlest first."""
    busy = psutil.cpu_percent(_LOOK_SECONDS, percpu=True)
    order = sorted(allowed, key=lambda cpu: busy[cpu] if cpu < len(busy) else 0.0)
    first: list[int] = []
    rest: list[int] = []
    seen: set[int] = set()
    for cpu in order:
        siblings = _siblings(cpu)
        (rest if siblings & seen else first).append(cpu)
        seen |= siblings
    return (first + rest)[:count]


def _siblings(cpu: int) -> set[int]:
    """Return the CPUs that share a core, this one among them."""
    path = _CPU_FOLDER / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return {cpu}
    found: set[int] = {cpu}
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found
