"""What a device said of itself, as a report words it: environment, and how quiet it was."""

from collections.abc import Mapping
from typing import Any

from vitdeploy.profiling.energy_use import Figure
from vitdeploy.report.profile import MachineRow
from vitdeploy.version import __version__

_WORDS = ("board", "l4t", "jetpack", "power_mode", "cpu", "cores", "memory_gib", "driver")
_BEFORE_AND_AFTER = (("gpu_clock_mhz", "MHz"), ("cpu_clock_mhz", "MHz"), ("temperature_c", "°C"))
_NOISY_SPREAD_PERCENT = 10.0
_UNKNOWN = "not looked at on a device"


def device_environment(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Return the device's facts as words; clocks and warmth as they were before and after."""
    facts = {name: str(after[name]) for name in _WORDS if after.get(name) is not None}
    for name, unit in _BEFORE_AND_AFTER:
        seen = [_numbers(then.get(name)) for then in (before, after)]
        if all(seen):
            facts[name] = " → ".join(dict.fromkeys(f"{text} {unit}" for text in seen))
    facts |= {name: str(after[name]) for name in ("system", "python")}
    return {**facts, **after["versions"], "vitdeploy": __version__}


def machine_row(spread_percent: float, before: Mapping[str, Any], idle: Figure) -> MachineRow:
    """Return how quiet the device was, as far as it is looked at.

    Args:
        spread_percent: of the reference's rounds.
        before: the device's facts.
        idle: watts while nothing ran, or None and why.
    """
    noisy = spread_percent > _NOISY_SPREAD_PERCENT
    clocks = before.get("cpu_clock_mhz")
    load = before.get("load_1m")
    return MachineRow(
        is_noisy=noisy,
        findings=(f"the reference's rounds differ by {spread_percent:.0f} %",) * noisy,
        pinned_cpus_reason=_UNKNOWN,
        load_1m=load,
        load_1m_reason=None if load is not None else "the device does not tell",
        steal_percent_reason=_UNKNOWN,
        others_percent_reason=_UNKNOWN,
        throttled_percent_reason=_UNKNOWN,
        frequency_mhz=(clocks[0], clocks[1]) if clocks else None,
        frequency_mhz_reason=None if clocks else "the device does not tell",
        spread_percent=spread_percent,
        idle_watts=idle[0],
        idle_watts_reason=idle[1],
    )


def _numbers(value: float | list[float] | None) -> str:
    """Return a figure, or the lowest and highest of several."""
    if value is None:
        return ""
    values = value if isinstance(value, list) else [value]
    return " to ".join(dict.fromkeys(f"{number:.0f}" for number in values))
