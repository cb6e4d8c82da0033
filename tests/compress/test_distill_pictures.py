"""A look at a picture depends on seed, picture and view alone."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model_folders import write_images
from tests.small_models import PREPROCESS
from vitdeploy.compress.distill.pictures import Pictures, batches_of, training_transform
from vitdeploy.data import scan_images
from vitdeploy.errors import UsageError
from vitdeploy.recipe import AugmentSection

STRONG = AugmentSection(auto_augment="rand-m9-mstd0.5-inc1", erasing=0.5, color_jitter=0.3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory):
    return scan_images(write_images(tmp_path_factory.mktemp("pictures") / "images", 2))


def pictures(images, seed: int = 0) -> Pictures:
    return Pictures(images, training_transform(STRONG, PREPROCESS), seed)


def test_a_look_is_always_the_same(images):
    first = pictures(images)[1, 3][0]
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    again = pictures(images)
    again[0, 0]
    assert torch.equal(again[1, 3][0], first)
    assert not torch.equal(again[1, 4][0], first)
    assert not torch.equal(pictures(images, seed=1)[1, 3][0], first)
    assert first.shape == (3, 32, 32)


def test_other_random_numbers_stay_as_they_were(images):
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = drawn()
    seed()
    pictures(images)[2, 0]
    assert drawn() == expected


def test_workers_see_the_same(images):
    looks = [[(0, 0), (1, 1)], [(2, 2), (3, 0)]]
    alone = [batch[0] for batch in batches_of(pictures(images), looks, 0)]
    helped = [batch[0] for batch in batches_of(pictures(images), looks, 1)]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_labels_come_along(images, tmp_path: Path):
    assert [pictures(images)[i, 0][1] for i in range(6)] == [0, 0, 1, 1, 2, 2]  # sorted: blue first
    flat = scan_images(images.paths[0].parent)
    assert pictures(flat)[0, 0][1] == -1


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(UsageError, match="rand-m9"):
        training_transform(AugmentSection(auto_augment="nonsense"), PREPROCESS)
