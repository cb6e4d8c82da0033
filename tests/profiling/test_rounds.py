"""Turns in rounds, and warming up until the time stops falling, with engines made up here."""

import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from vitdeploy.errors import DataError
from vitdeploy.profiling import rounds, stations
from vitdeploy.profiling.engines import Opened, Setup
from vitdeploy.profiling.rounds import Cell, run_rounds
from vitdeploy.profiling.stations import IsolatedStation, LocalStation, Slot, Warmth
from vitdeploy.profiling.subjects import Source

SOURCE = Source("a", "model", "fp32", "onnxruntime", {"x": np.zeros((1, 2), np.float32)})


class Logged:
    """A station that only notes its turns."""

    def __init__(self, name: str, log: list[str]):
        self.name, self.log = name, log

    def slot(self, batch: int, seconds: float) -> Slot:
        self.log.append(f"{self.name}{batch}")
        return Slot(np.asarray([seconds]), seconds)


def cells(log: list[str], run_seconds: float = 0.001) -> list[Cell]:
    warmth = Warmth(1.0, 2, True, run_seconds)
    names = (("a", 1), ("a", 8), ("b", 1))
    return [Cell(Logged(name, log), batch, 1, warmth) for name, batch in names]  # type: ignore[arg-type]


def test_subjects_take_turns_and_the_order_turns():
    log: list[str] = []
    slots = run_rounds(cells(log), seconds=0.0)
    assert log == ["a1", "a8", "b1", "b1", "a8", "a1", "a1", "a8", "b1"]
    assert [len(one) for one in slots] == [3, 3, 3]


def test_slow_runs_have_two_rounds():
    log: list[str] = []
    run_rounds(cells(log, run_seconds=2.0), seconds=0.0)
    assert len(log) == 6


def test_a_short_budget_has_short_turns():
    (short, *_), (long, *_) = (run_rounds(cells([])[:1], seconds=s)[0] for s in (0.0, 1e-9))
    assert short.seconds == rounds._LEAST_SLOT_SECONDS
    assert long.seconds == rounds._LEAST_SLOT_SECONDS


def station(monkeypatch: pytest.MonkeyPatch, run, streams: int = 1) -> LocalStation:
    opened = Opened("engine", 1, (run,) * streams, ExitStack())
    monkeypatch.setattr(stations, "import_engine", lambda source: None)
    monkeypatch.setattr(stations, "open_engine", lambda source, setup: opened)
    made = LocalStation(SOURCE, Setup(streams=streams))
    made.open()
    return made


def test_warming_up_goes_on_while_runs_get_faster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stations, "_WINDOW_SECONDS", 0.0)
    durations = iter([0.05] * 4 + [0.02] * 3 + [0.008] * 3)

    def run(feeds) -> None:
        time.sleep(next(durations, 0.003))

    warmth = station(monkeypatch, run).warm_up(1)
    # one run, then windows of three: 50, 20, 8, 3 and again 3 ms; the first window may be no
    # faster than the run before it, and ends nothing by chance only when it is
    assert warmth.is_warm
    assert warmth.first_ms >= 50
    assert warmth.runs >= 4


def test_a_slow_engine_is_run_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stations, "SLOW_SECONDS", 0.01)
    runs: list[int] = []
    made = station(monkeypatch, lambda feeds: (runs.append(1), time.sleep(0.02)))
    assert made.warm_up(1).runs == 1
    made.slot(1, 0.0)
    assert len(runs) == 2


def test_feeds_have_the_batch(monkeypatch: pytest.MonkeyPatch):
    shapes: set[tuple[int, ...]] = set()
    made = station(monkeypatch, lambda feeds: shapes.add(feeds["x"].shape))
    made.warm_up(5)
    assert shapes == {(5, 2)}


def test_streams_run_at_once(monkeypatch: pytest.MonkeyPatch):
    made = station(monkeypatch, lambda feeds: time.sleep(0.02), streams=4)
    made.warm_up(1)
    slot = made.slot(1, 0.2)
    made.close()
    # one after the other they would be 10
    assert len(slot.latencies_ms) > 20
    assert slot.latencies_ms.min() >= 20


def test_no_memory_is_a_clear_error(monkeypatch: pytest.MonkeyPatch):
    def run(feeds) -> None:
        raise MemoryError

    with pytest.raises(DataError, match="out of memory at batch 64"):
        station(monkeypatch, run).warm_up(64)


def test_a_process_that_dies_is_a_clear_error(onnx_file: Path):
    source = Source("a", "model", "fp32", "onnxruntime", SOURCE.feeds, path=onnx_file)
    made = IsolatedStation(source, Setup())
    made.open()
    assert made._process is not None
    made._process.kill()
    with pytest.raises(DataError, match="ended with code -9"):
        made.peaks()
    made.close()
