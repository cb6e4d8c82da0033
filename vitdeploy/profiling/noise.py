"""Whether the machine was quiet: what others took of its CPUs, its clock, and how rounds differ."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from vitdeploy.report.profile import MachineRow

_STEAL_PERCENT = 1.0
_OTHERS_PERCENT = 5.0
_THROTTLED_PERCENT = 1.0
_SPREAD_PERCENT = 10.0
_FREQUENCY_SHARE = 0.9
_CGROUP_STAT = Path("/sys/fs/cgroup/cpu.stat")


@dataclass(frozen=True)
class _Snapshot:
    """Counters of the machine at one moment, in seconds."""

    clock: float
    own: float
    """Of the processes that take part."""
    busy: float
    """Of all CPUs and processes, without steal."""
    total: float
    """Of all CPUs, with idle and steal."""
    steal: float | None
    throttled: float | None
    frequencies: tuple[float, ...]


class MachineWatch:
    """Looks at the machine before and after a measurement."""

    def __init__(self, helpers_seconds: Callable[[], float]) -> None:
        """Look for the first time.

        Args:
            helpers_seconds: CPU time so far of other processes that take part.
        """
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._helpers_seconds = helpers_seconds
        self._before = _look(helpers_seconds())

    def finish(
        self,
        spread_percent: float,
        pinned: tuple[tuple[int, ...] | None, str | None],
        idle: tuple[float | None, str | None],
    ) -> MachineRow:
        """Return how quiet it was since.

        Args:
            spread_percent: of the reference's rounds.
            pinned: the CPUs that were used alone, or None and why not.
            idle: watts while nothing ran, or None and why not.
        """
        before, after = self._before, _look(self._helpers_seconds())
        clock = max(after.clock - before.clock, 1e-9)
        total = max(after.total - before.total, 1e-9)
        own = after.own - before.own
        others = 100.0 * max(0.0, after.busy - before.busy - own) / total
        steal = _share(before.steal, after.steal, total)
        throttled = _share(before.throttled, after.throttled, clock)
        clocks = before.frequencies + after.frequencies
        seen = _findings(steal, others, throttled, spread_percent)
        if clocks and min(clocks) < _FREQUENCY_SHARE * max(clocks):
            seen.append(
                f"CPU clocks went from {min(clocks):.0f} to {max(clocks):.0f} MHz; fix the governor"
            )
        missing = "this system does not tell"
        return MachineRow(
            is_noisy=bool(seen),
            findings=tuple(seen),
            pinned_cpus=pinned[0],
            pinned_cpus_reason=pinned[1],
            load_1m=self._load,
            load_1m_reason=None if self._load is not None else missing,
            steal_percent=steal,
            steal_percent_reason=None if steal is not None else missing,
            others_percent=others,
            throttled_percent=throttled,
            throttled_percent_reason=None if throttled is not None else "no quota is set here",
            frequency_mhz=(min(clocks), max(clocks)) if clocks else None,
            frequency_mhz_reason=None if clocks else missing,
            spread_percent=spread_percent,
            idle_watts=idle[0],
            idle_watts_reason=idle[1],
        )


def _findings(
    steal: float | None, others: float, throttled: float | None, spread: float
) -> list[str]:
    """Return what was noisy, each with its figure."""
    found = []
    if steal is not None and steal > _STEAL_PERCENT:
        found.append(f"other virtual machines took {steal:.1f} % of the CPU time (steal)")
    if others > _OTHERS_PERCENT:
        found.append(f"other processes took {others:.0f} % of the CPU time; stop them")
    if throttled is not None and throttled > _THROTTLED_PERCENT:
        found.append(f"the container's CPU quota held it back {throttled:.0f} % of the time")
    if spread > _SPREAD_PERCENT:
        found.append(f"the reference's rounds differ by {spread:.0f} %")
    return found


def _share(before: float | None, after: float | None, whole: float) -> float | None:
    if before is None or after is None:
        return None
    return 100.0 * max(0.0, after - before) / whole


def _look(helpers_seconds: float) -> _Snapshot:
    times = psutil.cpu_times()
    steal = getattr(times, "steal", None)
    idle = times.idle + getattr(times, "iowait", 0.0)
    # The time of guests is in that of user already.
    whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    own = psutil.Process().cpu_times()
    return _Snapshot(
        clock=time.perf_counter(),
        own=own.user + own.system + helpers_seconds,
        busy=whole - idle - (steal or 0.0),
        total=whole,
        steal=steal,
        throttled=_throttled_seconds(),
        frequencies=_frequencies(),
    )


def _throttled_seconds() -> float | None:
    """Return how long the container's quota has held it back; None without a quota."""
    try:
        text = _CGROUP_STAT.read_text(encoding="ascii")
    except OSError:
        return None
    values = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
    if int(values.get("nr_periods", 0)) == 0:
        return None
    return int(values.get("throttled_usec", 0)) / 1e6


def _frequencies() -> tuple[float, ...]:
    """Return the clock of each CPU in MHz, where a governor tells it; a guest's is a constant."""
    if not Path("/sys/devices/system/cpu/cpu0/cpufreq").is_dir():
        return ()
    try:
        return tuple(f.current for f in psutil.cpu_freq(percpu=True) if f.current > 0)
    except (OSError, NotImplementedError, AttributeError):
        return ()
