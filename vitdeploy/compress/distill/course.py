"""What a training goes through: pictures, their order, the teachers' answers, the examination.

The answers come from a store that is filled first, or from the teachers at every step.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitdeploy.compress.distill.answers import Answers
from vitdeploy.compress.distill.epochs import Share, Timetable
from vitdeploy.compress.distill.pictures import Pictures, batches_of, training_transform
from vitdeploy.compress.distill.store import StoreRecord, TeacherStore
from vitdeploy.compress.distill.teachers import Teacher
from vitdeploy.data import ImageLoader, ImageSet, Preprocess
from vitdeploy.errors import DataError
from vitdeploy.progress import Progress
from vitdeploy.recipe import DistillSection

_BATCH = 64
"""Pictures at a time where no gradients are needed."""
_STORE = "teacher-outputs"
_NO_PIXELS = {
    "mixup", "cutmix", "mix_probability", "switch_probability", "smoothing", "repeats",
}  # fmt: skip
"""Options of augmentation that do not change what a single view shows."""

Ask = Callable[[torch.Tensor, list[int], list[int]], list[Answers]]


@dataclass(frozen=True)
class Material:
    """What a course is made of."""

    section: DistillSection
    images: ImageSet
    evaluation: ImageSet | None
    preprocess: Preprocess
    """Of the student."""
    seed: int
    folder: Path
    """Of the training."""
    progress: Progress


@dataclass(frozen=True)
class Course:
    """What a training goes through."""

    pictures: Pictures
    timetable: Timetable
    ask: Ask
    """Pixels, indices and views of a batch -> each teacher's answers."""
    judge: Callable[[Callable[[torch.Tensor], Answers]], float | None]
    """Top-1 in per cent of a function of pixels; None where nothing is judged."""


def course_for(accelerator: Any, teachers: tuple[Teacher, ...], material: Material) -> Course:
    """Return the course, once the teachers' answers are there where they are stored.

    Raises:
        DataError: the store is of other teachers or pictures, or the disk lacks room for it.
        UsageError: batch and processes do not go together, or an augmentation is unknown.
    """
    section, training = material.section, material.section.training
    transform = training_transform(section.augment, material.preprocess)
    pictures = Pictures(material.images, transform, material.seed)
    timetable = Timetable(
        len(pictures),
        training.batch_size,
        training.accumulation,
        section.augment.repeats,
        section.looks,
        material.seed,
        Share(accelerator.process_index, accelerator.num_processes),
    )
    ask = _live(teachers)
    if teachers and section.is_stored:
        ask = _stored(accelerator, teachers, pictures, material)
    return Course(pictures, timetable, ask, _judge(accelerator, material))


def fingerprint(images: ImageSet) -> str:
    """Return the SHA-256 of names, sizes and labels of the files, in order; reads no picture."""
    root = os.path.commonpath([path.parent for path in images.paths]) if images.paths else ""
    digest = hashlib.sha256()
    for index, path in enumerate(images.paths):
        label = "" if images.labels is None else images.labels[index]
        row = f"{path.relative_to(root).as_posix()} {path.stat().st_size} {label}\n"
        digest.update(row.encode())
    for picture in images.pictures:
        digest.update(repr(picture).encode())
    return digest.hexdigest()


def _live(teachers: tuple[Teacher, ...]) -> Ask:
    def ask(pixels: torch.Tensor, indices: list[int], views: list[int]) -> list[Answers]:
        return [teacher.ask(pixels) for teacher in teachers]

    return ask


def _stored(
    accelerator: Any, teachers: tuple[Teacher, ...], pictures: Pictures, material: Material
) -> Ask:
    """Return how stored answers are read, once all of them are there."""
    section, progress = material.section, material.progress
    folder = Path(section.store)
    if section.store == "auto":
        folder = material.folder / _STORE
    store = TeacherStore(folder, _record(teachers, material), section.looks)
    missing = store.missing()
    progress.note(
        f"teacher outputs: {len(pictures)} pictures, {section.looks} view(s) each, "
        f"{store.size_bytes / 1e6:.1f} MB in '{folder}'; {len(missing)} file(s) to compute."
    )
    if accelerator.is_main_process:
        _require_space(store)
        store.create()
    accelerator.wait_for_everyone()
    progress.stage("teach")
    for done, place in enumerate(missing):
        if done % accelerator.num_processes == accelerator.process_index:
            looks = store.looks(*place)
            groups = [looks[i : i + _BATCH] for i in range(0, len(looks), _BATCH)]
            loader = batches_of(pictures, groups, section.training.workers)
            batches = (batch[0].to(accelerator.device) for batch in loader)
            store.write(*place, ([teacher.ask(b) for teacher in teachers] for b in batches))
        progress.step(done + 1, len(missing))
    accelerator.wait_for_everyone()

    def read(pixels: torch.Tensor, indices: list[int], views: list[int]) -> list[Answers]:
        return store.read(indices, views, pixels.device)

    return read


def _require_space(store: TeacherStore) -> None:
    try:
        store.require_space()
    except DataError as e:
        raise DataError(
            f"the teachers' outputs do not fit: {e} Or keep fewer (--views), or none (--store off)."
        ) from e


def _record(teachers: tuple[Teacher, ...], material: Material) -> StoreRecord:
    shown = {
        "augment": material.section.augment.model_dump(mode="json", exclude=_NO_PIXELS),
        "preprocess": material.preprocess.to_dict(),
    }
    return StoreRecord(
        teachers=tuple(teacher.fingerprint for teacher in teachers),
        shapes=tuple(teacher.shapes for teacher in teachers),
        pictures=fingerprint(material.images),
        count=len(material.images),
        augmentation=json.dumps(shown, sort_keys=True),
        seed=material.seed,
    )


def _judge(
    accelerator: Any, material: Material
) -> Callable[[Callable[[torch.Tensor], Answers]], float | None]:
    """Return how a function from pixels to answers is judged: top-1, over all processes."""
    images = material.evaluation

    def judge(answer: Callable[[torch.Tensor], Answers]) -> float | None:
        if images is None or images.labels is None:
            return None
        labels = torch.tensor(images.labels)
        counts = torch.zeros(2, device=accelerator.device)
        batches = ImageLoader(images, material.preprocess).batches(_BATCH)
        for number, (pixels, indices) in enumerate(batches):
            if number % accelerator.num_processes != accelerator.process_index:
                continue
            with torch.no_grad(), accelerator.autocast():
                answers = answer(torch.from_numpy(pixels).to(accelerator.device))
            if "logits" not in answers:
                return None
            hits = answers["logits"].argmax(-1).cpu() == labels[torch.from_numpy(indices)]
            counts += torch.tensor([float(hits.sum()), float(len(hits))], device=counts.device)
        if accelerator.num_processes > 1:
            counts = accelerator.reduce(counts, reduction="sum")
        return 100 * float(counts[0] / counts[1])

    return judge
