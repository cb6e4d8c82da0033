"""accelerate: one process or several, on CPUs, GPUs or machines, in FP32, BF16 or FP16."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vitdeploy.errors import UnsupportedError
from vitdeploy.recipe import TrainingSection


def create_accelerator(section: TrainingSection, *, has_idle_parts: bool = False) -> Any:
    """Return accelerate's `Accelerator` for a training.

    Args:
        section: its options.
        has_idle_parts: whether a part of the student may be read by no loss.

    Raises:
        UnsupportedError: FP16 or BF16 where the device has none.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    if section.precision == "fp16" and not torch.cuda.is_available():
        raise UnsupportedError(
            "precision fp16: a training in FP16 needs a GPU, and there is none here. Use fp32, or "
            "bf16 where the processor has it."
        )
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(
        # Without this, processes on a machine of CPUs alone know nothing of one another.
        cpu=several and not torch.accelerator.is_available(),
        mixed_precision="no" if section.precision == "fp32" else section.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=section.accumulation, sync_with_dataloader=False
        ),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=has_idle_parts)],
    )


@contextmanager
def accelerating(section: TrainingSection, *, has_idle_parts: bool = False) -> Iterator[Any]:
    """Yield `create_accelerator`, and forget its global state afterwards, as trainings differ."""
    from accelerate.state import AcceleratorState, GradientState

    before = AcceleratorState._shared_state != {}
    accelerator = create_accelerator(section, has_idle_parts=has_idle_parts)
    try:
        yield accelerator
    finally:
        if not before:
            accelerator.end_training()
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
