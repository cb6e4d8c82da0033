"""One process and several go through the same pictures in the same steps."""

import pytest

from vitdeploy.compress.distill.epochs import Share, Timetable
from vitdeploy.errors import DataError, UsageError


def table(batch: int = 8, accumulation: int = 1, repeats: int = 1, rank=0, world=1, looks=3):
    return Timetable(50, batch, accumulation, repeats, looks, 7, Share(rank, world))


def test_an_epoch_shows_pictures_once_in_another_order_each_time():
    first, second = table().epoch(0), table().epoch(1)
    assert len(first) == table().steps == 6
    shown = [index for batch in first for index, _ in batch]
    assert len(set(shown)) == 48
    assert shown != [index for batch in second for index, _ in batch]
    assert {view for batch in second for _, view in batch} == {1}
    assert {view for batch in table().epoch(5) for _, view in batch} == {2}  # three views in turns


@pytest.mark.parametrize(("accumulation", "world"), [(2, 1), (1, 2), (2, 2)])
def test_steps_are_the_same_however_they_are_divided(accumulation, world):
    whole = [set(batch) for batch in table().epoch(2)]
    tables = [table(accumulation=accumulation, rank=r, world=world) for r in range(world)]
    parts = [t.epoch(2) for t in tables]
    divided = [
        {
            look
            for own in parts
            for batch in own[step * accumulation : (step + 1) * accumulation]
            for look in batch
        }
        for step in range(6)
    ]
    assert divided == whole
    assert {len(batch) for own in parts for batch in own} == {8 // world // accumulation}


def test_repeated_augmentation_shows_a_picture_in_several_views():
    batches = table(repeats=3, looks=30).epoch(1)
    looks = [look for batch in batches for look in batch]
    assert len(looks) == 48
    assert len({index for index, _ in looks}) == 16
    assert {view for _, view in looks} == {3, 4, 5}
    two = [table(repeats=3, looks=30, rank=r, world=2).epoch(1) for r in range(2)]
    assert len({look for own in two for batch in own for look in batch}) == 48


def test_a_batch_must_be_divisible():
    with pytest.raises(UsageError, match="cannot be divided into 3 equal parts"):
        table(accumulation=3)


def test_a_batch_must_be_filled():
    with pytest.raises(DataError, match="50 training pictures do not fill one batch of 64"):
        table(batch=64)
