"""Training pictures: timm's augmentation, drawn anew from a seed for every look at a picture.

A look is (picture, view). What it shows depends on the seed and these two numbers alone: not on
the process, the batch or what was drawn before. So a store of teacher outputs, a resumed run and
several processes all see the same pictures.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vitdeploy.data import ImageSet, Preprocess
from vitdeploy.errors import UsageError
from vitdeploy.recipe import AugmentSection

Look = tuple[int, int]
"""(index of a picture, number of the view)."""


class Pictures(Dataset):  # type: ignore[misc]
    """By `Look`: (augmented pixels (3, H, W) float32, label or -1, index, view)."""

    def __init__(self, images: ImageSet, transform: Any, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, look: Look) -> tuple[torch.Tensor, int, int, int]:
        index, view = look
        image = self.images.open(index)
        with seeded(self.seed, view, index):
            pixels = self.transform(image)
        label = -1 if self.images.labels is None else self.images.labels[index]
        return pixels, label, index, view


def training_transform(section: AugmentSection, preprocess: Preprocess) -> Any:
    """Return timm's training transform: a picture in, (3, H, W) float32 normalised out.

    Raises:
        UsageError: timm does not know the name in `auto_augment`.
    """
    from timm.data import create_transform

    try:
        return create_transform(
            preprocess.size,
            is_training=True,
            scale=section.crop_scale,
            hflip=section.flip,
            color_jitter=section.color_jitter,
            auto_augment=section.auto_augment,
            interpolation=section.interpolation or preprocess.interpolation,
            mean=preprocess.mean,
            std=preprocess.std,
            re_prob=section.erasing,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError) as e:
        raise UsageError(
            f"timm cannot make the augmentation '{section.auto_augment}': {e}. Names look like "
            "rand-m9-mstd0.5-inc1, augmix-m3, 3a or original."
        ) from e


def batches_of(pictures: Pictures, looks: list[list[Look]], workers: int) -> Any:
    """Return a loader of batches of looks, in their order."""
    # A generator of its own: the loader would draw from the one that dropout reads.
    return DataLoader(
        pictures,
        batch_sampler=looks,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
        pin_memory=torch.cuda.is_available(),
    )


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed every generator that timm's transforms draw from; restore them at the end."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
