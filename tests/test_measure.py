import time
from itertools import pairwise

import numpy as np
import pytest

from vitdeploy import measure
from vitdeploy.measure import StageClock, Subject, Timing, measure_latency


class Sleeper:
    engine = "sleep"
    threads = 1

    def __init__(self, seconds: float, log: list[str], name: str):
        self.seconds, self.log, self.name = seconds, log, name

    def __call__(self, feeds):
        self.log.append(self.name)
        time.sleep(self.seconds)
        return {}


def test_subjects_take_turns_and_the_slower_is_seen_to_be_slower():
    log: list[str] = []
    subjects = [
        Subject("fast", Sleeper(0.002, log, "fast"), {}, 2),
        Subject("slow", Sleeper(0.02, log, "slow"), {}, 2),
    ]
    timings = measure_latency(subjects, seconds=0.4)
    assert timings["slow"].p50_ms > 3 * timings["fast"].p50_ms
    assert timings["fast"].p50_ms >= 2.0
    assert len(timings["slow"].samples_ms) >= 3
    changes = sum(a != b for a, b in pairwise(log))
    assert changes >= 3


def test_a_budget_of_nothing_still_measures_three_rounds():
    timings = measure_latency([Subject("a", Sleeper(0.0, [], "a"), {}, 1)], seconds=0.0)
    assert len(timings["a"].samples_ms) >= 3


def test_of_what_is_slow_few_samples_are_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "_SLOW_SECONDS", 0.02)
    log: list[str] = []
    subjects = [
        Subject("fast", Sleeper(0.0, log, "fast"), {}, 1),
        Subject("slow", Sleeper(0.03, log, "slow"), {}, 1),
    ]
    timings = measure_latency(subjects, seconds=0.0)
    assert len(timings["slow"].samples_ms) == 2
    assert log.count("slow") == 3  # one of them to warm up


def test_percentiles_and_throughput():
    timing = Timing(np.arange(1.0, 102.0), batch=4)
    assert timing.p50_ms == 51.0
    assert timing.percentile(90) == pytest.approx(91.0)
    assert timing.throughput_ips == pytest.approx(4000 / 51)


def test_stage_clock_sees_a_peak_that_is_gone_at_the_end():
    clock = StageClock()
    with clock.stage("idle"):
        pass
    with clock.stage("big"):
        block = np.ones(25_000_000)
        time.sleep(0.1)
        del block
    idle, big = clock.records
    assert big.peak_rss_bytes - idle.peak_rss_bytes > 150_000_000
    assert big.seconds >= 0.1


def test_stage_clock_records_a_stage_that_fails():
    clock = StageClock()
    with pytest.raises(RuntimeError), clock.stage("fails"):
        raise RuntimeError
    assert clock.records[0].name == "fails"
