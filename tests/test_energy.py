"""Energy from counters and meters, made up here; and why there is none."""

import os
import stat
from pathlib import Path

import pytest

from vitdeploy.energy import Rapl, Tegrastats, find_energy_source


def zone(folder: Path, name: str, microjoules: int) -> Path:
    path = folder / name
    path.mkdir()
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text("999\n")
    return path


def test_packages_are_summed_and_a_counter_may_begin_anew(tmp_path: Path):
    first, second = zone(tmp_path, "intel-rapl:0", 100), zone(tmp_path, "intel-rapl:1", 900)
    zone(tmp_path, "intel-rapl:0:0", 5)  # part of the first package; not counted again
    source, reason = find_energy_source(tmp_path)
    assert reason is None
    assert isinstance(source, Rapl)

    def run() -> None:
        (first / "energy_uj").write_text("350")
        (second / "energy_uj").write_text("50")

    with source:
        # 250 and, over the end of a counter of 0..999, 150
        assert source.joules(run) == pytest.approx(400e-6)


def test_without_counters_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_energy_source(tmp_path)[0] is None
    assert "neither RAPL" in str(find_energy_source(tmp_path)[1])


def test_counters_that_may_not_be_read_are_told(tmp_path: Path):
    (zone(tmp_path, "intel-rapl:0", 1) / "energy_uj").unlink()
    source, reason = find_energy_source(tmp_path)
    assert source is None
    assert "root" in str(reason)


@pytest.fixture
def meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `tegrastats` that prints a line every 10 ms."""
    path = tmp_path / "tegrastats"
    path.write_text(
        '#!/bin/sh\nwhile :; do echo "RAM 1/2MB VDD_IN 4000mW/3900mW"; sleep 0.01; done'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return path


def test_a_jetson_s_meter_is_power_times_time(meter: Path):
    import time

    source, _ = find_energy_source()
    assert isinstance(source, Tegrastats)
    with source:
        assert source.joules(lambda: time.sleep(0.3)) == pytest.approx(1.2, rel=0.3)


def test_a_meter_that_tells_nothing_is_an_error(meter: Path):
    meter.write_text("#!/bin/sh\nsleep 0.2")
    source, _ = find_energy_source()
    assert source is not None
    with source, pytest.raises(ValueError, match="told no power"):
        source.joules(lambda: None)
