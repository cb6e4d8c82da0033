"""Percentiles and ratios of slots, and an interval that holds what a repeat would give."""

import numpy as np
import pytest

from vitdeploy.profiling.stations import Slot
from vitdeploy.profiling.statistics import (
    BETWEEN_PROCESSES,
    MIN_ROUNDS_FOR_INTERVAL,
    jitter_ms,
    ratio_of,
    round_medians,
    samples_of,
    spread_percent,
)


def slots(*latencies: list[float]) -> list[Slot]:
    return [Slot(np.asarray(one), sum(one) / 1000.0) for one in latencies]


def test_jitter_is_between_neighbours_within_a_round():
    # 1 and 3 within rounds; the step from 2 to 9 is between two rounds and not counted
    assert jitter_ms(slots([1.0, 2.0], [9.0, 6.0])) == pytest.approx(2.0)
    assert jitter_ms(slots([1.0], [9.0])) is None


def test_samples_and_medians_keep_the_rounds_order():
    some = slots([3.0, 1.0, 2.0], [5.0])
    assert list(samples_of(some)) == [3.0, 1.0, 2.0, 5.0]
    assert list(round_medians(some)) == [2.0, 5.0]


def test_spread_is_of_the_medians():
    assert spread_percent(np.full(9, 4.0)) == 0.0
    assert spread_percent(np.linspace(90, 110, 101)) == pytest.approx(16.0)


def test_drift_that_meets_both_cancels_in_the_ratio():
    drift = np.linspace(1.0, 3.0, 40)
    ratio = ratio_of(2.0 * drift, drift)
    assert ratio.value == pytest.approx(2.0)
    # what is left is what differs between processes
    unseen = 1.96 * np.sqrt(2) * BETWEEN_PROCESSES
    assert ratio.low == pytest.approx(2.0 * np.exp(-unseen))
    assert ratio.high == pytest.approx(2.0 * np.exp(unseen))


def test_a_busy_machine_widens_the_interval():
    even = np.ones(40)
    quiet, busy = (ratio_of(even, even, share) for share in (0.0, 0.8))
    assert quiet.high is not None
    assert busy.high is not None
    assert quiet.high < 1.03
    assert busy.high > 1.08


def test_few_rounds_have_no_interval():
    few = np.ones(MIN_ROUNDS_FOR_INTERVAL - 1)
    ratio = ratio_of(few, few)
    assert ratio.value == 1.0
    assert ratio.low is None
    assert "--seconds" in str(ratio.low_reason)


def noisy(rng: np.random.Generator, rounds: int = 80) -> np.ndarray:
    """Medians whose noise lasts for some rounds: an AR(1) series, as a shared machine gives."""
    steps = 0.03 * rng.standard_normal(rounds)
    series = np.zeros(rounds)
    for index in range(1, rounds):
        series[index] = 0.5 * series[index - 1] + steps[index]
    return np.exp(series)


def test_the_interval_holds_a_repeat_s_ratio():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        first, again = (ratio_of(1.7 * noisy(rng), noisy(rng)) for _ in range(2))
        assert first.low is not None
        assert first.high is not None
        held += first.low <= again.value <= first.high
    # 95 % are meant; blocks of a series that is alike over rounds lose a little of its spread,
    # and of 100 trials the standard error is 2 points.
    assert held >= 0.87 * 100


def test_the_interval_is_not_wider_than_it_must_be():
    rng = np.random.default_rng(1)
    values = [ratio_of(noisy(rng), noisy(rng)).value for _ in range(50)]
    # of the difference of two repeats, in one process and between two
    alone = np.hypot(np.std(np.log(values)), BETWEEN_PROCESSES)
    spread = 2 * 1.96 * np.sqrt(2) * alone
    ratio = ratio_of(noisy(rng), noisy(rng))
    assert ratio.low is not None
    assert ratio.high is not None
    assert np.log(ratio.high / ratio.low) < 1.6 * spread
