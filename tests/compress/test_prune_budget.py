"""The smallest share that meets a limit: exact ones, and ones that are measured with noise."""

from collections.abc import Callable

import pytest

from vitdeploy.compress.prune.budget import Limit, Reached, smallest_shares
from vitdeploy.compress.prune.selection import Shares
from vitdeploy.compress.prune.units import Kept
from vitdeploy.errors import CompressionError


def search(most: float, measure: Callable[[float], float], *, is_noisy: bool = False) -> Reached:
    """A model of 100 channels, whose share that goes is what `measure` is asked about."""

    def choose(shares: Shares) -> Kept:
        return Kept(channels={"mlp": tuple(range(100 - round(100 * shares.mlp)))})

    def of(kept: Kept) -> float:
        left = len(kept.channels["mlp"]) if kept.channels else 100
        return measure(1 - left / 100)

    return smallest_shares(Shares(), Limit("ms", most, of, is_noisy=is_noisy), choose)


def test_the_smallest_share_is_found_and_what_it_brings_is_told():
    found = search(6.0, lambda share: 10 * (1 - share))
    # one of 100 channels is 0.1; the bisection's last step is smaller
    assert 5.8 <= found.value <= 6.0
    assert found.whole == 10
    assert found.shares.heads == found.shares.mlp == pytest.approx(0.4, abs=0.01)


def test_what_is_noisy_is_measured_again_and_a_lucky_share_is_passed_over():
    """The first time any share is timed it seems 1 ms faster than it is."""
    seen: set[float] = set()

    def measure(share: float) -> float:
        lucky = 0.0 if share == 0 or share in seen else 1.0
        seen.add(share)
        return 10 * (1 - share) - lucky

    found = search(6.0, measure, is_noisy=True)
    assert found.value <= 6.0
    assert 10 * (1 - len_gone(found)) <= 6.0
    assert search(6.0, lambda share: 10 * (1 - share), is_noisy=True).value <= 6.0


def len_gone(found: Reached) -> float:
    return 1 - len(found.kept.channels["mlp"]) / 100


def test_what_is_met_once_and_never_again_is_no_result():
    asked: set[float] = set()

    def measure(share: float) -> float:
        again = share in asked
        asked.add(share)
        return 10.0 if share == 0 or again else 5.0

    with pytest.raises(CompressionError, match="reached once and not again"):
        search(6.0, measure, is_noisy=True)


@pytest.mark.parametrize("is_noisy", [False, True])
def test_what_cannot_be_asked_for(is_noisy: bool):
    with pytest.raises(CompressionError, match="nothing to prune"):
        search(11.0, lambda share: 10 * (1 - share), is_noisy=is_noisy)
    with pytest.raises(CompressionError, match="cannot be reached"):
        search(1.0, lambda share: 10 - 5 * share, is_noisy=is_noisy)
