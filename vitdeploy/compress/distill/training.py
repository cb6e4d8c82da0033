"""`Training`: the loop, on whatever accelerate offers; it can be broken off and goes on the same.

What is looked at when is in `epochs`, the loss in `objective`, where checkpoints lie in
`checkpoints`; optimiser, schedule, mixup and the running mean of weights are timm's.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from vitdeploy.compress.distill.checkpoints import (
    Position,
    append_metrics,
    complete,
    cut_metrics,
    latest,
    partial_path,
    remove_partial,
)
from vitdeploy.compress.distill.course import Course
from vitdeploy.compress.distill.objective import Objective, Pupil
from vitdeploy.compress.distill.pace import Pace
from vitdeploy.compress.distill.pictures import batches_of
from vitdeploy.errors import CompressionError, UsageError
from vitdeploy.progress import Progress
from vitdeploy.recipe import AugmentSection, TrainingSection

_ROW_STEPS = 50
"""Optimiser steps between two rows of the metrics."""


@dataclass(frozen=True)
class Options:
    """How a training is done, and where it leaves what it needs to go on."""

    section: TrainingSection
    augment: AugmentSection
    seed: int
    folder: Path
    progress: Progress
    classes: int = 0
    """Of the labels, for mixup."""


def optimizer_for(pupil: Pupil, section: TrainingSection) -> Any:
    """Return timm's optimiser; biases and norms have no weight decay.

    Raises:
        UsageError: timm has no such optimiser.
        CompressionError: layer decay, and the model does not say which layer is which.
    """
    from timm.optim import create_optimizer_v2

    if section.layer_decay is not None and not hasattr(pupil.student, "group_matcher"):
        raise CompressionError(
            f"layer_decay {section.layer_decay:g}: {type(pupil.student).__name__} does not say "
            "which parameters are of which layer, as models of timm do. Leave it away."
        )
    try:
        return create_optimizer_v2(
            pupil,
            section.optimizer,
            lr=section.lr,
            weight_decay=section.weight_decay,
            layer_decay=section.layer_decay,
        )
    except (ValueError, AssertionError, RuntimeError) as e:
        raise UsageError(
            f"optimizer '{section.optimizer}': {e}. timm.optim.list_optimizers() lists the names."
        ) from e


class Training:
    """One training under way: model, optimiser, schedule, running mean, and how far they are."""

    def __init__(
        self,
        accelerator: Any,
        pupil: Pupil,
        objective: Objective,
        course: Course,
        options: Options,
    ) -> None:
        from accelerate.utils import set_seed
        from timm.scheduler import create_scheduler_v2
        from timm.utils import ModelEmaV3

        section = options.section
        self.accelerator = accelerator
        self.objective = objective
        self.course = course
        self.options = options
        self.answering: nn.Module = pupil.answering[0]
        optimizer = optimizer_for(pupil, section)
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            section.schedule,
            num_epochs=section.epochs,
            min_lr=section.min_lr,
            warmup_lr=section.warmup_lr,
            warmup_epochs=section.warmup_epochs,
            step_on_epochs=section.schedule_by == "epoch",
            updates_per_epoch=course.timetable.steps,
        )
        self.pupil, self.optimizer = accelerator.prepare(pupil, optimizer)
        self.ema = None
        if section.ema is not None:
            self.ema = ModelEmaV3(self.answering, decay=section.ema, use_warmup=True)
            accelerator.register_for_checkpointing(self.ema)
        self.mixup = _mixup(options.augment, options.classes)
        self.step = 0
        self.metrics_bytes = 0
        set_seed(options.seed, device_specific=True)

    def run(self) -> float | None:
        """Train to the end; return the last top-1 in per cent, None where nothing is judged.

        The student's weights are then the trained ones, or their running mean.

        Raises:
            CompressionError: the loss is NaN or infinite; the last good checkpoint is kept.
        """
        self._go_on()
        steps = self.course.timetable.steps
        top1 = None
        for epoch in range(self.step // steps, self.options.section.epochs):
            pace = self._train_epoch(epoch)
            top1 = self._judge(epoch, pace)
            self._save_checkpoint()
        if top1 is None:  # nothing was left to train
            top1 = self.course.judge(self.judged)
        if self.ema is not None:
            self.answering.load_state_dict(self.ema.module.state_dict())
        return top1

    @property
    def judged(self) -> nn.Module:
        """The module whose weights will be kept, from pixels to answers."""
        module: nn.Module = self.answering if self.ema is None else self.ema.module
        return module

    def _train_epoch(self, epoch: int) -> Pace:
        section, timetable = self.options.section, self.course.timetable
        done = self.step - epoch * timetable.steps
        looks = timetable.epoch(epoch)[done * section.accumulation :]
        pace = Pace(timetable.batch_size, self.step, section.epochs * timetable.steps)
        self.pupil.train()
        for batch in batches_of(self.course.pictures, looks, section.workers):
            with self.accelerator.accumulate(self.pupil):
                self._set_rate(epoch)
                parts, hits = self._forward(batch)
                self.accelerator.backward(parts["loss"])
                if self.accelerator.sync_gradients and section.clip_grad is not None:
                    self.accelerator.clip_grad_norm_(self.pupil.parameters(), section.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
            pace.add(self._agreed(parts), hits)
            self._require_finite(pace)
            if self.accelerator.sync_gradients:
                self._end_step(epoch, pace)
        return pace

    def _forward(self, batch: list[torch.Tensor]) -> tuple[dict[str, torch.Tensor], float | None]:
        """Return the losses of a micro-batch and its accuracy (0..1, None without labels)."""
        device = self.accelerator.device
        pixels, labels = batch[0].to(device), batch[1].to(device)
        targets = labels
        if self.mixup is not None:
            pixels, targets = self.mixup(pixels, labels.clamp(min=0))
        answers = self.course.ask(pixels, batch[2].tolist(), batch[3].tolist())
        outputs = self.pupil(pixels)
        parts = self.objective(outputs, answers, targets)
        if "label_loss" not in parts:
            return parts, None
        hits = outputs["logits"].detach().argmax(-1) == labels
        return parts, float(hits.float().mean())

    def _agreed(self, parts: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return the losses, averaged over processes, so that all stop where one must."""
        values = torch.stack([value.detach().float() for value in parts.values()])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, reduction="mean")
        return dict(zip(parts, values.tolist(), strict=True))

    def _require_finite(self, pace: Pace) -> None:
        loss = pace.last["loss"]
        if not math.isfinite(loss):
            self._stop(f"the loss is {loss}")

    def _stop(self, why: str) -> NoReturn:
        kept = latest(self.options.folder)
        where = "none was taken yet" if kept is None else f"step {kept[1].step} in '{kept[0]}'"
        raise CompressionError(
            f"{why} at step {self.step + 1}, so training stopped. Last good "
            f"checkpoint: {where}. Lower --lr, clip gradients (--clip-grad 1), or use bf16 instead "
            "of fp16; that is a new training, so begin it with --force or another --output."
        )

    def _end_step(self, epoch: int, pace: Pace) -> None:
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.answering, step=self.step)
        pace.end_step()
        options = self.options
        options.progress.step(self.step, pace.total)
        options.progress.detail(pace.describe())
        if self.step % _ROW_STEPS == 0:
            place = {"step": self.step, "epoch": epoch + 1, "lr": self._rate()}
            self._write_row({**place, **pace.row()})
        every = options.section.checkpoint_steps
        if every is not None and self.step % every == 0:
            self._save_checkpoint()

    def _set_rate(self, epoch: int) -> None:
        if self.options.section.schedule_by == "epoch":
            self.schedule.step(epoch)
        else:
            self.schedule.step_update(self.step)

    def _rate(self) -> float:
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def _judge(self, epoch: int, pace: Pace) -> float | None:
        self.judged.eval()
        top1 = self.course.judge(self.judged)
        self._write_row({"step": self.step, "epoch": epoch + 1, "eval_top1": top1, **pace.row()})
        shown = "" if top1 is None else f", top-1 {top1:.2f} %"
        epochs = self.options.section.epochs
        self.options.progress.note(f"epoch {epoch + 1}/{epochs}: {pace.describe()}{shown}")
        return top1

    def _write_row(self, row: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.metrics_bytes = append_metrics(self.options.folder, row)

    def _save_checkpoint(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.pupil.parameters()):
            self._stop("weights are NaN or infinite")  # the same in all processes
        folder, main = self.options.folder, self.accelerator.is_main_process
        partial = partial_path(folder, self.step)
        if main:
            partial.mkdir(exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if main:
            complete(folder, Position(self.step, self.metrics_bytes))

    def _go_on(self) -> None:
        """Take up the newest checkpoint, where there is one."""
        folder = self.options.folder
        if self.accelerator.is_main_process:
            remove_partial(folder)
        self.accelerator.wait_for_everyone()
        found = latest(folder)
        if found is None:
            if self.accelerator.is_main_process:
                cut_metrics(folder, 0)
            return
        path, position = found
        self.accelerator.load_state(str(path))
        self.step, self.metrics_bytes = position.step, position.metrics_bytes
        if self.accelerator.is_main_process:
            cut_metrics(folder, position.metrics_bytes)
        self.options.progress.note(f"going on after step {self.step}.")


def _mixup(section: AugmentSection, classes: int) -> Any:
    """Return timm's mixup and CutMix of a batch; None where both are off."""
    from timm.data import Mixup

    if not section.mixes:
        return None
    return Mixup(
        mixup_alpha=section.mixup,
        cutmix_alpha=section.cutmix,
        prob=section.mix_probability,
        switch_prob=section.switch_probability,
        label_smoothing=section.smoothing,
        num_classes=max(classes, 1),
    )
