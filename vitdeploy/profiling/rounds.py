"""Rounds: every subject gets a turn in each, so that the machine's drift meets all alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitdeploy.profiling.stations import SLOW_SECONDS, Slot, Station, Warmth

_SLOT_SECONDS = 0.05
"""Of a turn with one stream: long enough to settle, short enough to interleave."""
_STREAMED_SLOT_SECONDS = 0.25
"""Of a turn with several, whose beginning and end are not full."""
_WANTED_ROUNDS = 24
"""Turns are shorter where the budget would not allow so many."""
_LEAST_SLOT_SECONDS = 0.01
_MIN_ROUNDS = 3
_MIN_ROUNDS_IF_SLOW = 2


@dataclass(frozen=True)
class Cell:
    """One station at one batch size."""

    station: Station
    batch: int
    streams: int
    warmth: Warmth


def run_rounds(
    cells: Sequence[Cell], seconds: float, progress: Callable[[int, int], None] | None = None
) -> list[list[Slot]]:
    """Return for each cell its slots, one a round.

    The order turns from round to round.

    Args:
        cells: what takes turns.
        seconds: budget for everything; at least three rounds are made all the same, or two
            where a run takes a second or more.
        progress: called with (milliseconds used, milliseconds allowed).
    """
    slowest = max((cell.warmth.run_seconds for cell in cells), default=0.0)
    rounds = _MIN_ROUNDS_IF_SLOW if slowest >= SLOW_SECONDS else _MIN_ROUNDS
    slots: list[list[Slot]] = [[] for _ in cells]
    wanted = sum(_SLOT_SECONDS if cell.streams == 1 else _STREAMED_SLOT_SECONDS for cell in cells)
    share = min(1.0, seconds / (_WANTED_ROUNDS * wanted))
    start = time.perf_counter()
    done = 0
    while True:
        order = range(len(cells)) if done % 2 == 0 else reversed(range(len(cells)))
        for index in order:
            cell = cells[index]
            length = _SLOT_SECONDS if cell.streams == 1 else _STREAMED_SLOT_SECONDS
            length = max(_LEAST_SLOT_SECONDS, share * length)
            slots[index].append(cell.station.slot(cell.batch, length))
        done += 1
        used = time.perf_counter() - start
        if progress:
            progress(min(int(1000 * used), int(1000 * seconds)), max(int(1000 * seconds), 1))
        if done >= rounds and used >= seconds:
            return slots
