"""Energy, where the platform tells it: Intel's and AMD's RAPL counters, NVIDIA's tegrastats.

What is counted is the whole package or board, idle power included. This module also runs on
devices (see `remote.session`): Python 3.8 and its standard library.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

_POWERCAP = Path("/sys/class/powercap")
_TEGRASTATS_MS = 50
_BOARD_POWER = re.compile(r"\b(?:VDD_IN|POM_5V_IN) (\d+)(?:mW)?/")
"""Input of the whole board: Orin and Xavier, and the first generation."""


class EnergySource(Protocol):
    """Tells energy; a context manager."""

    name: str

    def joules(self, run: Callable[[], object]) -> float:
        """Return the energy used while `run` runs, which takes a second or more."""
        ...

    def __enter__(self) -> EnergySource: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def find_energy_source(powercap: Path = _POWERCAP) -> tuple[EnergySource | None, str | None]:
    """Return what tells energy here and None, or None and why nothing does."""
    if shutil.which("tegrastats"):
        return Tegrastats(), None
    zones = sorted(zone for zone in powercap.glob("intel-rapl:*") if zone.name.count(":") == 1)
    if not zones:
        return None, "this platform has neither RAPL counters nor tegrastats"
    try:
        for zone in zones:
            _microjoules(zone)
    except OSError:
        return None, f"the RAPL counters in '{powercap}' are for root only; profile as root"
    return Rapl(zones), None


class Rapl:
    """Counters of the processor's packages."""

    name = "RAPL"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [
            int((zone / "max_energy_range_uj").read_text(encoding="ascii")) for zone in zones
        ]

    def joules(self, run: Callable[[], object]) -> float:
        """Return the energy of all packages; a counter may begin anew once."""
        before = [_microjoules(zone) for zone in self._zones]
        run()
        after = [_microjoules(zone) for zone in self._zones]
        spent = (
            later - earlier + (whole + 1 if later < earlier else 0)
            for earlier, later, whole in zip(before, after, self._ranges)  # noqa: B905 - 3.8
        )
        return sum(spent) / 1e6

    def __enter__(self) -> Rapl:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Tegrastats:
    """A Jetson's own meter of the board's input, read in the background."""

    name = "tegrastats"

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def joules(self, run: Callable[[], object]) -> float:
        """Return mean power while `run` ran times how long that was.

        Raises:
            ValueError: no sample fell into it.
        """
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        watts = [power for moment, power in list(self._samples) if start <= moment <= end]
        if not watts:
            raise ValueError("tegrastats told no power of the board")
        return (end - start) * sum(watts) / len(watts)

    def __enter__(self) -> Tegrastats:
        command = ["tegrastats", "--interval", str(_TEGRASTATS_MS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._reader is not None
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process is not None
        for line in self._process.stdout or ():
            found = _BOARD_POWER.search(line)
            if found:
                self._samples.append((time.perf_counter(), int(found[1]) / 1000.0))


def _microjoules(zone: Path) -> int:
    return int((zone / "energy_uj").read_text(encoding="ascii"))
