"""A noisy machine is told from its counters."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from vitdeploy.profiling import noise
from vitdeploy.profiling.memory import forget_peak, peak_bytes, resident_bytes
from vitdeploy.profiling.noise import MachineWatch, _findings
from vitdeploy.profiling.pinning import pinned

NO_PINS = (None, "not asked for")
NO_ENERGY = (None, "no counter")


def test_a_process_beside_is_seen():
    watch = MachineWatch(lambda: 0.0)
    code = "import time; end = time.time() + 0.8\nwhile time.time() < end: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    row = watch.finish(0.0, NO_PINS, NO_ENERGY)
    # It has one of the CPUs; of many that is a small share.
    assert row.others_percent is not None
    assert row.others_percent > 40 / (os.cpu_count() or 1)


def test_a_helper_s_time_is_not_another_s(monkeypatch: pytest.MonkeyPatch):
    looks = iter(
        noise._Snapshot(clock, own, busy, 10 * clock, 0.0, None, ())
        for clock, own, busy in ((1.0, 1.0, 2.0), (2.0, 5.0, 6.5))
    )
    monkeypatch.setattr(noise, "_look", lambda helpers: next(looks))
    row = MachineWatch(lambda: 0.0).finish(1.0, NO_PINS, NO_ENERGY)
    assert row.others_percent == pytest.approx(5.0)  # half a second of ten
    assert not row.is_noisy


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ((7.0, 0.0, None, 0.0), "other virtual machines took 7.0 %"),
        ((None, 30.0, None, 0.0), "other processes took 30 %"),
        ((0.0, 0.0, 20.0, 0.0), "quota held it back 20 %"),
        ((0.0, 0.0, None, 25.0), "rounds differ by 25 %"),
    ],
)
def test_each_noise_is_said(figures: tuple, message: str):
    (finding,) = _findings(*figures)
    assert message in finding


def test_a_quiet_machine_has_no_findings():
    assert _findings(0.2, 1.0, None, 3.0) == []


def test_a_clock_that_moves_is_said(monkeypatch: pytest.MonkeyPatch):
    clocks = iter([(3000.0, 3000.0), (3000.0, 1500.0)])
    monkeypatch.setattr(noise, "_frequencies", lambda: next(clocks))
    row = MachineWatch(lambda: 0.0).finish(0.0, NO_PINS, NO_ENERGY)
    assert row.frequency_mhz == (1500.0, 3000.0)
    assert any("1500 to 3000 MHz" in finding for finding in row.findings)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no call to pin a process here")
def test_pinning_holds_inside_and_ends():
    before = os.sched_getaffinity(0)
    with pinned(1) as (cpus, reason):
        assert reason is None
        assert os.sched_getaffinity(0) == set(cpus or ())
        assert len(cpus or ()) == 1
    assert os.sched_getaffinity(0) == before


def test_what_cannot_be_pinned_says_why():
    with pinned(None) as (cpus, reason):
        assert cpus is None
        assert "no --threads" in str(reason)
    with pinned(100_000) as (cpus, reason):
        assert cpus is None
        assert reason


def test_a_peak_that_is_gone_is_seen_and_forgotten():
    if reason := forget_peak():
        pytest.skip(reason)
    before = resident_bytes()
    block = np.ones(25_000_000)
    time.sleep(0.01)
    del block
    assert peak_bytes() - before > 150_000_000
    assert forget_peak() is None
    assert peak_bytes() - resident_bytes() < 50_000_000
