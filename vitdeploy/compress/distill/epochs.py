"""Which pictures are looked at when: the micro-batches of an epoch, for each process.

One process and several go through the same pictures in the same steps.
"""

from dataclasses import dataclass

import torch

from vitdeploy.compress.distill.pictures import Look
from vitdeploy.errors import DataError, UsageError


@dataclass(frozen=True)
class Share:
    """Which process of how many this is."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Timetable:
    """How a set of pictures is gone through.

    Raises:
        UsageError: the batch cannot be divided among processes and accumulation.
        DataError: there are fewer pictures than a batch has.
    """

    pictures: int
    batch_size: int
    """Of one optimiser step, over all processes."""
    accumulation: int
    repeats: int
    looks: int
    """Views of each picture; later epochs begin again with the first."""
    seed: int
    share: Share

    def __post_init__(self) -> None:
        parts = self.share.world * self.accumulation
        if self.batch_size % parts:
            raise UsageError(
                f"a batch of {self.batch_size} pictures cannot be divided into {parts} equal "
                f"parts ({self.share.world} process(es), accumulation {self.accumulation}). Give "
                f"a --batch-size that is a multiple of {parts}."
            )
        if self.steps < 1:
            raise DataError(
                f"{self.pictures} training pictures do not fill one batch of {self.batch_size}. "
                "Give more, or a smaller --batch-size."
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch; pictures that fill no batch wait for another epoch."""
        return self.pictures // self.batch_size

    def epoch(self, number: int) -> list[list[Look]]:
        """Return this process's micro-batches of epoch `number`, counted from 0."""
        size = self.batch_size // (self.share.world * self.accumulation)
        own = self._repeated(number) if self.repeats > 1 else self._once(number, size)
        count = self.steps * self.accumulation
        return [own[i * size : (i + 1) * size] for i in range(count)]

    def _once(self, epoch: int, size: int) -> list[Look]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.pictures, generator=generator).tolist()
        view = epoch % self.looks
        step = size * self.share.world
        first = size * self.share.rank
        return [
            (index, view)
            for start in range(first, len(order), step)
            for index in order[start : start + size]
        ]

    def _repeated(self, epoch: int) -> list[Look]:
        """Return timm's repeated augmentation: every picture thrice, say, a third of them all."""
        from timm.data.distributed_sampler import RepeatAugSampler

        rank, world = self.share.rank, self.share.world
        sampler = RepeatAugSampler(
            range(self.pictures), world, rank, num_repeats=self.repeats, selected_round=0
        )
        sampler.set_epoch(self.seed * 1_000_003 + epoch)
        # The sampler lists each picture `repeats` times in a row and deals them out in turns.
        return [
            (index, (epoch * self.repeats + (place * world + rank) % self.repeats) % self.looks)
            for place, index in enumerate(sampler)
        ]
