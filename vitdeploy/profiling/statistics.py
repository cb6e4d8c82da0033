"""Figures of slots: percentiles, jitter, spread, and the ratio of two artefacts with its interval.

Nothing here runs or times.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitdeploy.profiling.stations import Slot
from vitdeploy.report.profile import Ratio

MIN_ROUNDS_FOR_INTERVAL = 8
"""Fewer rounds say too little of how much rounds differ."""
_RESAMPLES = 2000
BETWEEN_PROCESSES = 0.01
"""Standard deviation of a log ratio from one process to the next, which no single one can see: it
depends on where weights and buffers come to lie. 0.015 in ten processes of the demo's artefacts on
a busy machine, of the fastest runs, of which some is the machine's."""
_SHARE = 0.95
BETWEEN_LOADS = 0.045
"""The same from one moment to another of a machine all of whose CPU time goes to others: 0.038 in
eleven runs of the demo's artefacts beside others that took 75 to 85 %. In proportion below."""
QUANTILES = tuple(range(0, 101, 5))

Floats = NDArray[np.float64]


def samples_of(slots: Sequence[Slot]) -> Floats:
    """Return all latencies, ms, in order."""
    return np.concatenate([slot.latencies_ms for slot in slots])


def round_medians(slots: Sequence[Slot]) -> Floats:
    """Return the median latency of each round, ms."""
    return np.asarray([float(np.median(slot.latencies_ms)) for slot in slots])


def jitter_ms(slots: Sequence[Slot]) -> float | None:
    """Return the mean |difference| of a run from the one before it, of slots with two or more."""
    steps = [np.abs(np.diff(slot.latencies_ms)) for slot in slots]
    known = np.concatenate(steps)
    return float(known.mean()) if len(known) else None


def spread_percent(medians: Floats) -> float:
    """Return how far rounds differ: 10th to 90th percentile of their medians over the median."""
    low, middle, high = np.percentile(medians, [10, 50, 90])
    return float(100.0 * (high - low) / middle) if middle > 0 else 0.0


def ratio_of(reference: Floats, own: Floats, others_share: float = 0.0) -> Ratio:
    """Return how many times as fast as the reference, with the interval of a repeat.

    Both were measured in the same rounds, so the machine's drift, which meets both, cancels in a
    round's own ratio. Rounds that follow each other are alike, so blocks of them are drawn
    (circular block bootstrap, Politis and Romano 1992). The interval is that of the median of
    *another* measurement as long as this one: of the difference of two resampled medians, wider
    by Student's factor for the few blocks there are, and by what one run cannot see: where memory
    comes to lie in a process, and that a machine busy with other work is busy in another way later.

    Args:
        reference: (rounds,) ms.
        own: (rounds,) ms, in the same rounds.
        others_share: of the CPU time, what went to other processes and virtual machines; 0 to 1.
    """
    logs = np.log(reference / own)
    value = float(np.exp(np.median(logs)))
    count = len(logs)
    if count < MIN_ROUNDS_FOR_INTERVAL:
        reason = f"{count} rounds; {MIN_ROUNDS_FOR_INTERVAL} are needed. Give it more --seconds"
        return Ratio(value=value, low_reason=reason, high_reason=reason)
    rng = np.random.default_rng(0)
    gaps = _resampled_medians(logs, rng) - _resampled_medians(logs, rng)
    seen = _few_blocks_factor(count) * np.quantile(gaps, [(1 - _SHARE) / 2, (1 + _SHARE) / 2])
    unseen = np.sqrt(2) * 1.96 * np.hypot(BETWEEN_PROCESSES, BETWEEN_LOADS * others_share)
    low, high = value * np.exp(np.hypot(seen, unseen) * [-1, 1])
    return Ratio(value=value, low=float(low), high=float(high))


def _resampled_medians(values: Floats, rng: np.random.Generator) -> Floats:
    """Return medians of series put together from blocks of `values`, which goes round."""
    count = len(values)
    length = _block_length(count)
    blocks = -(-count // length)
    starts = rng.integers(0, count, (_RESAMPLES, blocks, 1))
    drawn = values[(starts + np.arange(length)) % count].reshape(_RESAMPLES, -1)[:, :count]
    return np.asarray(np.median(drawn, axis=1))


def _few_blocks_factor(count: int) -> float:
    """Return by how much resampling so few blocks makes an interval too narrow."""
    from scipy import stats

    blocks = count / _block_length(count)
    tail = (1 + _SHARE) / 2
    student = float(stats.t.ppf(tail, blocks - 1) / stats.norm.ppf(tail))
    return student * float(np.sqrt(blocks / (blocks - 1)))


def _block_length(count: int) -> int:
    """Return rounds a block: up to a second or so of drift, and sixteen blocks where it can be."""
    return max(1, min(count // 16, 10))
