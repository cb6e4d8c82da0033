"""Energy of each subject: a few seconds of load in one go, after the rounds."""

import time
from collections.abc import Sequence

from vitdeploy.energy import EnergySource, find_energy_source
from vitdeploy.profiling.rounds import Cell

_IDLE_SECONDS = 1.0
_LOAD_SECONDS = 2.0
"""Of each subject: counters of power tell a mean over some tens of milliseconds."""

Figure = tuple[float | None, str | None]
"""A value, or None and why."""


def energy_of(cells: Sequence[Cell]) -> tuple[Figure, list[Figure]]:
    """Return watts while nothing runs, and millijoules an image of each cell."""
    source, reason = find_energy_source()
    if source is None:
        return (None, reason), [(None, reason)] * len(cells)
    with source:
        try:
            idle = source.joules(lambda: time.sleep(_IDLE_SECONDS)) / _IDLE_SECONDS
            return (idle, None), [(_millijoules(source, cell), None) for cell in cells]
        except (OSError, ValueError) as error:
            told = f"{source.name}: {error}"
            return (None, told), [(None, told)] * len(cells)


def _millijoules(source: EnergySource, cell: Cell) -> float:
    """Return what an image takes; runs begun before the end count whole."""
    images = 0

    def run() -> None:
        nonlocal images
        slot = cell.station.slot(cell.batch, _LOAD_SECONDS)
        images = cell.batch * len(slot.latencies_ms)

    return 1000.0 * source.joules(run) / images
