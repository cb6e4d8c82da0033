"""Where an artefact runs and is timed: in this process, or in one of its own.

A station answers the same calls in both places, so that rounds go over all of them in turns.
"""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import psutil

from vitdeploy.errors import DataError, VitdeployError
from vitdeploy.profiling.engines import Opened, Setup, import_engine, open_engine
from vitdeploy.profiling.memory import forget_peak, peak_bytes, resident_bytes
from vitdeploy.profiling.subjects import Source

SLOW_SECONDS = 1.0
"""A run this long is not repeated to warm up, and two rounds of it will do."""
_WINDOW_SECONDS = 0.1
_WINDOW_RUNS = 3
_STILL_FALLING = 0.97
"""A window is faster than all before it where its median is below this share of theirs."""
_MOST_WARMUP_SECONDS = 10.0


@dataclass(frozen=True)
class Loaded:
    """What opening an engine told."""

    engine: str
    threads: int | None
    load_ms: float


@dataclass(frozen=True)
class Warmth:
    """How an engine warmed up at one batch size."""

    first_ms: float
    runs: int
    is_warm: bool
    run_seconds: float
    """Of the fastest run."""


@dataclass(frozen=True)
class Slot:
    """What one turn of one subject gave."""

    latencies_ms: np.ndarray
    """(runs,) float64, in order; of several streams one after the other."""
    seconds: float
    """From its beginning to the end of the last run."""


@dataclass(frozen=True)
class Peaks:
    """Memory since the station opened."""

    engine_bytes: int
    """Highest resident memory, less what there was before."""
    process_bytes: int
    reset_reason: str | None
    """Why the peak may be older than the station; None where it is not."""


class Station(Protocol):
    """One part of one artefact, with its engine."""

    def open(self) -> Loaded:
        """Load the engine."""
        ...

    def warm_up(self, batch: int) -> Warmth:
        """Run until the time stops falling."""
        ...

    def slot(self, batch: int, seconds: float) -> Slot:
        """Run for about `seconds`, once at least, after an untimed run where runs are short."""
        ...

    def peaks(self) -> Peaks:
        """Return the memory so far."""
        ...

    def helper_seconds(self) -> float:
        """Return the CPU time of a process of its own; 0 where it runs in this one."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


class LocalStation:
    """Runs an artefact in this process."""

    def __init__(self, source: Source, setup: Setup) -> None:
        self._source, self._setup = source, setup
        self._opened: Opened | None = None
        self._feeds: dict[int, dict[str, np.ndarray]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._rss_before = 0
        self._reset_reason: str | None = None
        self._is_slow: dict[int, bool] = {}

    def open(self) -> Loaded:
        """Load the engine."""
        import_engine(self._source)
        self._rss_before = resident_bytes()
        self._reset_reason = forget_peak()
        start = time.perf_counter()
        self._opened = open_engine(self._source, self._setup)
        elapsed = 1000.0 * (time.perf_counter() - start)
        if len(self._opened.requests) > 1:
            self._pool = ThreadPoolExecutor(len(self._opened.requests))
        return Loaded(self._opened.engine, self._opened.threads, elapsed)

    def warm_up(self, batch: int) -> Warmth:
        """Run until the time stops falling."""
        self._feeds[batch] = self._source.feeds_at(batch)
        try:
            warmth = self._warmed_up(batch)
        except MemoryError as error:
            raise DataError(
                f"'{self._source.name}' ran out of memory at batch {batch}; use --batch 1."
            ) from error
        self._is_slow[batch] = warmth.run_seconds >= SLOW_SECONDS
        return warmth

    def slot(self, batch: int, seconds: float) -> Slot:
        """Run for about `seconds`, once at least, after an untimed run where runs are short."""
        assert self._opened is not None
        feeds, requests = self._feeds[batch], self._opened.requests
        if self._pool is None:
            if not self._is_slow[batch]:
                requests[0](feeds)
            start = time.perf_counter()
            samples = _timed_until(requests[0], feeds, start + seconds)
            return Slot(np.asarray(samples), time.perf_counter() - start)
        for future in [self._pool.submit(request, feeds) for request in requests]:
            future.result()
        start = time.perf_counter()
        futures = [
            self._pool.submit(_timed_until, request, feeds, start + seconds) for request in requests
        ]
        samples = [sample for future in futures for sample in future.result()]
        return Slot(np.asarray(samples), time.perf_counter() - start)

    def peaks(self) -> Peaks:
        """Return the memory so far."""
        peak = peak_bytes()
        return Peaks(max(0, peak - self._rss_before), peak, self._reset_reason)

    def helper_seconds(self) -> float:
        """Return 0: this process's time is counted by itself."""
        return 0.0

    def close(self) -> None:
        """Free the engine."""
        if self._pool is not None:
            self._pool.shutdown()
        if self._opened is not None:
            self._opened.close()
        self._opened, self._pool = None, None

    def _warmed_up(self, batch: int) -> Warmth:
        """Time windows of runs until one is no faster than all before it."""
        assert self._opened is not None
        request, feeds = self._opened.requests[0], self._feeds[batch]
        start = time.perf_counter()
        request(feeds)
        first = fastest = time.perf_counter() - start
        runs, medians, is_warm = 1, [1000.0 * first], False
        while not is_warm and fastest < SLOW_SECONDS:
            now = time.perf_counter()
            if now - start > _MOST_WARMUP_SECONDS:
                break
            window = _timed_until(request, feeds, now + _WINDOW_SECONDS)
            while len(window) < _WINDOW_RUNS:
                window += _timed_until(request, feeds, now)
            runs += len(window)
            fastest = min(fastest, min(window) / 1000.0)
            middle = float(np.median(window))
            is_warm = middle >= _STILL_FALLING * min(medians)
            medians.append(middle)
        return Warmth(1000.0 * first, runs, is_warm, fastest)


def _timed_until(
    request: Callable[[Any], object], feeds: dict[str, np.ndarray], end: float
) -> list[float]:
    """Return the milliseconds of runs until the clock passes `end`, of one at least."""
    samples: list[float] = []
    after = time.perf_counter()
    while not samples or after < end:
        before = after
        request(feeds)
        after = time.perf_counter()
        samples.append(1000.0 * (after - before))
    return samples


class IsolatedStation:
    """Runs an artefact in a process of its own, which does nothing between the calls."""

    def __init__(self, source: Source, setup: Setup) -> None:
        self._source, self._setup = source, setup
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> Loaded:
        """Start the process and load the engine there."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vitdeploy.profiling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        pickle.dump((self._source, self._setup), self._pipe_in())
        loaded = self._call("open")
        assert isinstance(loaded, Loaded)
        return loaded

    def warm_up(self, batch: int) -> Warmth:
        """Run there until the time stops falling."""
        warmth = self._call("warm_up", batch)
        assert isinstance(warmth, Warmth)
        return warmth

    def slot(self, batch: int, seconds: float) -> Slot:
        """Run there for about `seconds`."""
        slot = self._call("slot", batch, seconds)
        assert isinstance(slot, Slot)
        return slot

    def peaks(self) -> Peaks:
        """Return the memory of that process."""
        peaks = self._call("peaks")
        assert isinstance(peaks, Peaks)
        return peaks

    def helper_seconds(self) -> float:
        """Return the CPU time of that process."""
        assert self._process is not None
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _pipe_in(self) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin

    def _call(self, method: str, *arguments: object) -> object:
        """Return what a method of `LocalStation` returns in the other process.

        Raises:
            VitdeployError: the one raised there.
            DataError: the process died, for want of memory most likely.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((method, arguments), self._pipe_in())
            self._pipe_in().flush()
            # Our own process's pickles, from a pipe that nobody else can write to.
            answer = pickle.load(self._process.stdout)  # noqa: S301
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise DataError(
                f"the process that profiles '{self._source.name}' ended with code {code} during "
                f"{method}; it ran out of memory if that is -9. Profile fewer at a time, or a "
                "smaller --batch."
            ) from error
        if isinstance(answer, VitdeployError):
            raise answer
        return answer
