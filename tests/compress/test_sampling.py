"""A few images stand for all: from the whole pass, mixed, the same every time."""

import itertools

import numpy as np
import pytest

from vitdeploy.compress import sampling
from vitdeploy.compress.sampling import mixed, spread


def sorted_by_class(images: int, batch: int) -> list[dict[str, np.ndarray]]:
    """Batches whose images hold their own number, as of a folder that is sorted."""
    numbers = np.arange(images, dtype=np.float32).reshape(-1, 1)
    return [{"x": numbers[start : start + batch]} for start in range(0, images, batch)]


def test_images_are_spread_over_the_whole_pass():
    feeds = sorted_by_class(100, 1)
    seen = [int(batch["x"][0, 0]) for batch in spread(lambda: iter(feeds), 8)]
    assert 8 <= len(seen) < 16
    assert seen[-1] >= 100 - 2 * (seen[1] - seen[0])
    assert len({b - a for a, b in itertools.pairwise(seen)}) == 1


def test_the_first_batch_already_shows_images_from_all_over():
    feeds = sorted_by_class(100, 8)
    found = mixed(lambda: iter(feeds), 64)
    seen = np.concatenate([batch["x"][:, 0] for batch in found])
    assert sorted(seen) == sorted(set(range(100)))
    assert [len(batch["x"]) for batch in found] == [8] * 12 + [4]
    first = found[0]["x"]
    assert first.min() < 25
    assert first.max() >= 75
    again = mixed(lambda: iter(feeds), 64)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(found, again, strict=True))


def test_what_cannot_be_taken_apart_is_mixed_whole():
    feeds = [{"x": np.full((1, 2 + n % 2), n), "y": np.zeros(3)} for n in range(20)]
    found = mixed(lambda: iter(feeds), 16)
    numbers = [int(batch["x"][0, 0]) for batch in found]
    assert sorted(numbers) == list(range(20))
    assert numbers != sorted(numbers)
    assert all(batch["x"].shape == (1, 2 + n % 2) for n, batch in zip(numbers, found, strict=True))


def test_of_very_large_images_fewer_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampling, "MOST_BYTES", 40)
    assert len(spread(lambda: iter(sorted_by_class(100, 1)), 64)) <= 10


def test_no_image_is_no_batch():
    assert mixed(lambda: iter(()), 8) == []
