"""Training a student on what its teachers say: `distill_model`.

`teachers` asks any loaded model, `store` keeps the answers, `objective` makes a loss of them,
`training` is the loop. Here they are put together, and refused where they do not fit.
"""

import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitdeploy.allocator import keep_freed_memory
from vitdeploy.compress.distill.answers import FEATURES, answering, kinds_of
from vitdeploy.compress.distill.checkpoints import open_training, read_metrics
from vitdeploy.compress.distill.checks import (
    class_count,
    require_classes,
    require_teachers,
    require_usable_images,
    size_note,
    takes_token,
)
from vitdeploy.compress.distill.course import Material, course_for, fingerprint
from vitdeploy.compress.distill.objective import Aims, Objective, Pupil, projections
from vitdeploy.compress.distill.processes import accelerating
from vitdeploy.compress.distill.teachers import Lesson, Teacher, teacher_from_model
from vitdeploy.compress.distill.training import Options, Training
from vitdeploy.data import ImageSet
from vitdeploy.models.outputs import library_model
from vitdeploy.models.spec import LoadedModel
from vitdeploy.progress import Progress
from vitdeploy.recipe import DistillSection


@dataclass(frozen=True)
class DistillInputs:
    """What a training needs beyond the student and its options."""

    lessons: tuple[Lesson, ...]
    images: ImageSet
    evaluation: ImageSet | None
    folder: Path
    """Where checkpoints, metrics and an `auto` store lie until the training ends."""
    seed: int
    progress: Progress
    resume: bool = False
    force: bool = False


@dataclass(frozen=True)
class DistillResult:
    """A trained student, and how it came to be."""

    loaded: LoadedModel
    section: DistillSection
    projections: dict[str, torch.Tensor]
    """Weights of the layers from the student's features to each teacher's; empty without."""
    top1_before: float | None
    """On the evaluation images, in per cent; None without."""
    top1_after: float | None
    top1_teachers: tuple[float | None, ...]
    metrics: tuple[dict[str, Any], ...]
    """Rows of the metrics, in order."""
    seconds: float
    """Of training in this process, teachers' answers included."""
    is_main: bool
    """Whether this process is the one that writes."""
    notes: tuple[str, ...]
    """Warnings, and in the end what came of it."""


def distill_model(
    student: LoadedModel, section: DistillSection, inputs: DistillInputs
) -> DistillResult:
    """Return `student` trained as the section says; it stays as it is itself.

    Raises:
        UsageError: teachers, losses, batch and processes do not go together; see `open_training`.
        DataError: images without the labels that are needed, or of one class; a store of others.
        CompressionError: student and teachers do not fit, or the loss is not finite.
        UnsupportedError: a precision this machine cannot train in.
    """
    begun = time.perf_counter()
    keep_freed_memory()
    require_teachers(section, len(inputs.lessons))
    aims = _aims(student, section, inputs.images)
    require_usable_images(aims, inputs.images)
    if section.loss != "none":
        require_classes(student, inputs.lessons)
    notes = tuple(note for lesson in inputs.lessons if (note := size_note(student, lesson.loaded)))
    for note in notes:
        inputs.progress.note(note)
    part = dataclasses.replace(student.parts[0], module=copy.deepcopy(student.parts[0].module))
    trained = dataclasses.replace(student, parts=(part,))
    # Where features are taught, a head or a pooling may have no part in the loss.
    with accelerating(section.training, has_idle_parts=aims.features > 0) as accelerator:
        if accelerator.num_processes > 1:
            together = f"{accelerator.num_processes} processes train together."
            inputs.progress.note(together)
            notes = (*notes, together)
        if accelerator.is_main_process:
            settings = _settings(trained, section, inputs, accelerator.num_processes)
            open_training(inputs.folder, settings, resume=inputs.resume, force=inputs.force)
        accelerator.wait_for_everyone()
        preprocess, device = student.spec.preprocess, accelerator.device
        teachers = tuple(
            teacher_from_model(lesson, preprocess, aims.kinds, device) for lesson in inputs.lessons
        )
        course = course_for(accelerator, teachers, _material(student, section, inputs))
        pupil = _pupil(trained, aims, teachers, section, inputs.seed)
        before = course.judge(pupil.answering[0].to(device).eval())
        judged = tuple(course.judge(teacher.ask) for teacher in teachers)
        options = Options(
            section.training,
            section.augment,
            inputs.seed,
            inputs.folder,
            inputs.progress,
            class_count(student) or 0,
        )
        inputs.progress.stage("train")
        objective = Objective(aims, [teacher.weight for teacher in teachers])
        training = Training(accelerator, pupil, objective, course, options)
        after = training.run()
        metrics = tuple(read_metrics(inputs.folder))
        is_main = bool(accelerator.is_main_process)
        accelerator.wait_for_everyone()
    _finish_(part.module)
    summary = _summary(section, (before, after), judged)
    inputs.progress.note(summary)
    return DistillResult(
        loaded=trained,
        section=section,
        projections={k: v.cpu() for k, v in pupil.projection.state_dict().items()},
        top1_before=before,
        top1_after=after,
        top1_teachers=judged,
        metrics=metrics,
        seconds=time.perf_counter() - begun,
        is_main=is_main,
        notes=(*notes, summary),
    )


def _summary(
    section: DistillSection,
    top1: tuple[float | None, float | None],
    teachers: tuple[float | None, ...],
) -> str:
    text = f"trained {section.training.epochs} epoch(s)"
    if top1[0] is None or top1[1] is None:
        return text
    text += f": top-1 from {top1[0]:.2f} to {top1[1]:.2f} %"
    shown = ", ".join(f"{value:.2f} %" for value in teachers if value is not None)
    return f"{text} (teachers: {shown})" if shown else text


def _aims(student: LoadedModel, section: DistillSection, images: ImageSet) -> Aims:
    has_logits = "logits" in kinds_of(student)
    return Aims(
        section.loss,
        section.alpha,
        section.tau,
        section.features,
        has_logits and images.labels is not None,
        section.augment.smoothing,
        section.augment.mixes,
    )


def _pupil(
    student: LoadedModel,
    aims: Aims,
    teachers: tuple[Teacher, ...],
    section: DistillSection,
    seed: int,
) -> Pupil:
    """Return student and projections as one module; its distillation token is switched on."""
    model = library_model(student.parts[0].module)[0]
    if takes_token(model, section):
        model.set_distilled_training(enable=True)
    asked = answering(student, aims.student_kinds)
    own: dict[str, tuple[int, ...]] = {}
    if aims.features:
        with torch.no_grad():
            shown = asked.eval()(torch.zeros(1, 3, *student.spec.preprocess.size))
        own = {kind: tuple(shown[kind].shape[1:]) for kind in FEATURES if kind in shown}
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=True)
    return Pupil(model, asked, projections(own, teachers, seed))


def _finish_(module: nn.Module) -> None:
    """Bring a trained model back to what is exported: on the CPU, FP32, heads averaged."""
    model = library_model(module)[0]
    if hasattr(model, "set_distilled_training"):
        model.set_distilled_training(enable=False)
    module.to("cpu", torch.float32).eval()
    for parameter in module.parameters():
        parameter.grad = None


def _material(student: LoadedModel, section: DistillSection, inputs: DistillInputs) -> Material:
    return Material(
        section,
        inputs.images,
        inputs.evaluation,
        student.spec.preprocess,
        inputs.seed,
        inputs.folder,
        inputs.progress,
    )


def _settings(
    student: LoadedModel, section: DistillSection, inputs: DistillInputs, processes: int
) -> dict[str, Any]:
    """Return what a training that goes on must have in common with the one that began."""
    module = student.parts[0].module
    return {
        "student": student.spec.name,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "teachers": [lesson.loaded.spec.name for lesson in inputs.lessons],
        "pictures": fingerprint(inputs.images),
        "distill": section.model_dump(mode="json"),
        "seed": inputs.seed,
        "processes": processes,
    }
