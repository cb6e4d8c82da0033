"""Time and memory: interleaved latency of several runners, seconds and peak RSS of stages."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil

from vitdeploy.errors import DataError
from vitdeploy.runner import Feeds, Runner

_SLOT_SECONDS = 0.05
"""What each runner gets in a round; long enough to settle, short enough to interleave."""
_MIN_ROUNDS = 3
_SLOW_SECONDS = 1.0
"""A run this long needs no second warm-up, and two rounds of it will do."""
_MIN_ROUNDS_IF_SLOW = 2


@dataclass(frozen=True)
class Subject:
    """One thing to time."""

    name: str
    runner: Runner
    feeds: Feeds
    batch: int


@dataclass(frozen=True)
class Timing:
    """Latencies of one subject in milliseconds."""

    samples_ms: np.ndarray
    batch: int

    @property
    def p50_ms(self) -> float:
        """Return the median."""
        return self.percentile(50)

    @property
    def mean_ms(self) -> float:
        """Return the mean."""
        return float(self.samples_ms.mean())

    @property
    def throughput_ips(self) -> float:
        """Return images per second at the median latency."""
        return 1000.0 * self.batch / self.p50_ms

    def percentile(self, share: float) -> float:
        """Return the latency that `share` per cent of the samples stay below."""
        return float(np.percentile(self.samples_ms, share))


def measure_latency(
    subjects: Sequence[Subject],
    seconds: float,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Return the latencies by subject name, measured in turns within one process.

    Each round gives every subject a slot: one untimed run, then timed ones. The order turns
    from round to round, so that drift of the machine's clock harms all alike.

    Args:
        subjects: what to time; names are unique.
        seconds: budget for everything; at least three rounds are made all the same, or two
            where a subject takes a second or more.
        progress: called with (milliseconds used, milliseconds allowed).

    Raises:
        DataError: a subject's run fails.
    """
    samples: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    fastest = {subject.name: _warmed_up(subject) for subject in subjects}
    runs = {n: int(np.clip(_SLOT_SECONDS / least, 1, 50)) for n, least in fastest.items()}
    is_slow = max(fastest.values(), default=0.0) >= _SLOW_SECONDS
    rounds = _MIN_ROUNDS_IF_SLOW if is_slow else _MIN_ROUNDS
    start = time.perf_counter()
    done = 0
    while True:
        order = list(subjects) if done % 2 == 0 else list(reversed(subjects))
        for subject in order:
            if runs[subject.name] > 1:
                subject.runner(subject.feeds)
            for _ in range(runs[subject.name]):
                before = time.perf_counter()
                subject.runner(subject.feeds)
                samples[subject.name].append(1000.0 * (time.perf_counter() - before))
        done += 1
        used = time.perf_counter() - start
        if progress:
            progress(min(int(1000 * used), int(1000 * seconds)), max(int(1000 * seconds), 1))
        if done >= rounds and used >= seconds:
            break
    return {s.name: Timing(np.asarray(samples[s.name]), s.batch) for s in subjects}


def _warmed_up(subject: Subject) -> float:
    """Warm the runner up and return the seconds of its fastest run."""
    fastest = np.inf
    for _ in range(2):
        before = time.perf_counter()
        try:
            subject.runner(subject.feeds)
        except MemoryError as error:
            raise DataError(
                f"'{subject.name}' ran out of memory at batch {subject.batch}; use --batch 1."
            ) from error
        fastest = min(fastest, time.perf_counter() - before)
        if fastest >= _SLOW_SECONDS:
            break
    return fastest


@dataclass(frozen=True)
class StageRecord:
    """What one stage of a run cost."""

    name: str
    seconds: float
    peak_rss_bytes: int
    """Highest resident memory of the process while it ran, not what the stage added."""


@dataclass
class StageClock:
    """Records the stages of a run; the only mutable object the pipeline carries."""

    records: list[StageRecord] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside and sample its resident memory every 20 ms."""
        process = psutil.Process()
        peak = process.memory_info().rss
        stop = threading.Event()

        def sample() -> None:
            nonlocal peak
            while not stop.wait(0.02):
                peak = max(peak, process.memory_info().rss)

        sampler = threading.Thread(target=sample, daemon=True)
        start = time.perf_counter()
        sampler.start()
        try:
            yield
        finally:
            stop.set()
            sampler.join()
            peak = max(peak, process.memory_info().rss)
            self.records.append(StageRecord(name, time.perf_counter() - start, peak))
