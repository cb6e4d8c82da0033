"""`distill`: what `vitdeploy distill` does, from names to a model folder; and the step of a run.

Loading student and teachers, finding their images, and writing the folder are here; the training
itself is in `compress.distill`.
"""

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.data import ImageSet, Preprocess, scan_images
from vitdeploy.errors import UnsupportedError, UsageError
from vitdeploy.image_sets import scan_for_model
from vitdeploy.models import LoadedModel, load_model
from vitdeploy.models.pruned import require_savable, save_model_folder
from vitdeploy.output import create_sibling, raise_if_full, replace_folder, require_free_output
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.recipe import (
    DistillSection,
    ModelSection,
    Recipe,
    StudentSection,
    TeacherSection,
    is_onnx_source,
    recipe_from_dict,
)

if TYPE_CHECKING:
    from vitdeploy.compress.distill import DistillResult
    from vitdeploy.compress.distill.teachers import Lesson

TRAINING_REPORT = "training.json"


@dataclass(frozen=True)
class DistillReport:
    """What a training did, and where the model is now."""

    folder: Path
    result: "DistillResult"

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {"folder": str(self.folder), **training_report(self.result)}


@dataclass(frozen=True)
class Trial:
    """How a training is begun."""

    seed: int = 0
    """Of initialisation, order, augmentation and all that is random in training."""
    progress: Progress = field(default_factory=SilentProgress)
    resume: bool = False
    """Go on with the training towards the same output that was broken off."""
    force: bool = False
    """Replace a trained model that is there, and an unfinished training."""


def training_report(result: "DistillResult") -> dict[str, Any]:
    """Return what `training.json` says, without a path of this machine."""
    section = result.section.model_dump(mode="json")
    return {
        "schema_version": 1,
        "model": result.loaded.spec.name,
        "distill": section,
        "top1_before": result.top1_before,
        "top1": result.top1_after,
        "top1_teachers": list(result.top1_teachers),
        "seconds": round(result.seconds, 1),
        "notes": list(result.notes),
        "metrics": list(result.metrics),
    }


def distill(
    model: str,
    output: str | Path,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **sections: Any,
) -> DistillReport:
    """Return what the training of one student did; the sections are those of a `Recipe`.

    `distill("smaller", "out", distill={"path": "images", "teachers": [{"source": "vit-base"}]})`
    is what `vitdeploy distill smaller --teacher vit-base --data images -o out` does. `model` may
    also be given more exactly: `model_options={"checkpoint": "w.safetensors"}`.

    Raises:
        VitdeployError: as `distill_from_recipe`; UsageError for an unknown section.
    """
    options = dict(sections.pop("model_options", {}))
    recipe = recipe_from_dict({"model": {"source": model, **options}, **sections}, "distill")
    trial = Trial(progress=progress or SilentProgress(), resume=resume, force=force)
    return distill_from_recipe(recipe, output, trial)


def distill_from_recipe(
    recipe: Recipe, output: str | Path, trial: Trial | None = None
) -> DistillReport:
    """Train a student and write it as a model folder, whole or not at all; return what was done.

    Under `accelerate launch` or torchrun every process calls this; one of them writes.

    Args:
        recipe: who teaches whom, on what, and how; its model is the student where the section
            names none, else the teacher where it names none.
        output: the folder to write; `vitdeploy export` takes it as MODEL.
        trial: progress, and what happens to an earlier training; the seed is the recipe's.

    Raises:
        UsageError: nothing to train, the folder exists, or the student is an ONNX file; and see
            `distill_model`.
        VitdeployError: as `load_model`, `distill_model` and `save_model_folder`.
    """
    model, section = recipe.model, recipe.distill
    if section is None:
        raise UsageError("the recipe has no 'distill' section, so there is nothing to train.")
    trial = replace(trial or Trial(), seed=recipe.seed)
    if int(os.environ.get("RANK", "0")):  # one of several processes tells of the work
        trial = replace(trial, progress=SilentProgress())
    folder, progress = Path(output), trial.progress
    _require_free(folder, force=trial.force)
    progress.stage("load")
    if section.student is None:
        asked = StudentSection(**model.model_dump(include={"source", "checkpoint", "image_size"}))
        lessons = lessons_of(section, None, trial.seed)
    else:
        asked = section.student
        # A model that is its own student teaches only where a recipe names it.
        named = section.teachers or asked.source == model.source
        default = None if named else load_model(model, trial.seed)
        lessons = lessons_of(section, default, trial.seed)
    student = load_student(asked, section, lessons, trial.seed)
    require_savable(student)
    for loaded in (student, *(lesson.loaded for lesson in lessons)):
        for note in loaded.spec.notes:
            progress.note(note)
    result = distill_loaded(student, lessons, section, folder, trial)
    progress.stage("write")
    if result.is_main:
        _write(result, folder)
    return DistillReport(folder, result)


def distill_loaded(
    student: LoadedModel,
    lessons: "tuple[Lesson, ...]",
    section: DistillSection,
    output: Path,
    trial: Trial,
) -> "DistillResult":
    """Return `student` trained; the step as a run takes it.

    Args:
        student: stays as it is.
        lessons: of `lessons_of`.
        section: how it is trained.
        output: beside it, checkpoints and metrics lie until the training has ended.
        trial: seed, and whether an earlier training goes on.

    Raises:
        VitdeployError: see `distill_model`; DataError for images that do not fit the student.
    """
    from vitdeploy.compress.distill import DistillInputs, distill_model
    from vitdeploy.compress.distill.checkpoints import folder_of

    inputs = DistillInputs(
        lessons,
        scan_for_model(section.path, student),
        None if section.eval_path is None else scan_for_model(section.eval_path, student),
        folder_of(output.resolve()),
        trial.seed,
        trial.progress,
        resume=trial.resume,
        force=trial.force,
    )
    return distill_model(student, section, inputs)


def distill_in_run(
    models: tuple[LoadedModel, LoadedModel], section: DistillSection, output: Path, trial: Trial
) -> "DistillResult":
    """Return the student of a recipe's run, trained; an earlier training of the run goes on.

    Args:
        models: the model as loaded, which teaches where no other is named, and as it is pruned.
        section: of the recipe.
        output: the run's bundle.
        trial: its seed, and whether an earlier training is thrown away.

    Raises:
        UsageError: the model would teach itself, or several processes run.
        UnsupportedError: a student that sees other pictures than the run's model.
        VitdeployError: see `distill_loaded`.
    """
    from vitdeploy.compress.distill.checkpoints import folder_of

    loaded, kept = models
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "a recipe's run is one process. Train with `accelerate launch -m vitdeploy distill "
            "RECIPE.yaml` first, then export the folder that it writes."
        )
    if section.student is None and kept is loaded and not section.teachers:
        raise UsageError(
            "distill: nothing is pruned and neither a student nor teachers are named, so the "
            "model would teach itself. Add a 'prune' section, 'student' or 'teachers'."
        )
    lessons = lessons_of(section, loaded, trial.seed)
    student = kept
    if section.student is not None:
        student = load_student(section.student, section, lessons, trial.seed)
    if student.spec.preprocess != loaded.spec.preprocess:
        raise UnsupportedError(
            f"the student sees {student.spec.preprocess} and the run's model "
            f"{loaded.spec.preprocess}, so they cannot be compared in one run. Train with "
            "`vitdeploy distill`, then export the folder that it writes."
        )
    resume = folder_of(output.resolve()).exists() and not trial.force
    return distill_loaded(student, lessons, section, output, replace(trial, resume=resume))


def end_training(output: Path) -> None:
    """Remove what a training kept to go on, once its result is written."""
    from vitdeploy.compress.distill.checkpoints import folder_of

    shutil.rmtree(folder_of(output.resolve()), ignore_errors=True)


def lessons_of(
    section: DistillSection, default: LoadedModel | None, seed: int
) -> "tuple[Lesson, ...]":
    """Return the teachers of a section; `default` teaches where it names none.

    Raises:
        ModelError: one of them cannot be loaded.
    """
    from vitdeploy.compress.distill.teachers import Lesson

    if section.teachers or default is None:
        return tuple(
            Lesson(load_model(_teacher_model(teacher), seed), teacher.weight, teacher.resize)
            for teacher in section.teachers
        )
    if section.loss == "none" and not section.features:
        return ()
    return (Lesson(default),)


def load_student(
    asked: StudentSection, section: DistillSection, lessons: "tuple[Lesson, ...]", seed: int
) -> LoadedModel:
    """Return the student as it begins: with weights, from scratch, or cut out of a teacher.

    Raises:
        UsageError: it is an ONNX file, or is to be cut out of a teacher that is not there.
        VitdeployError: see `load_model`, `new_student` and `select_from_teacher_`.
    """
    from vitdeploy.compress.distill.students import new_student, select_from_teacher_

    if is_onnx_source(asked.source):
        raise UsageError(
            f"'{asked.source}' is an ONNX file, which can teach but not learn. Give the student "
            "as an alias, timm:NAME, or a model folder."
        )
    if asked.initialise == "weights":
        chosen = ModelSection(
            source=asked.source, checkpoint=asked.checkpoint, image_size=asked.image_size
        )
        return load_model(chosen, seed)
    if asked.initialise == "teacher" and not lessons:
        raise UsageError("--student-from-teacher needs a --teacher to select layers from.")
    student = new_student(asked, _surroundings(section, lessons), seed)
    if asked.initialise == "teacher":
        share = select_from_teacher_(student, lessons[0].loaded)
        note = f"{100 * share:.0f} % of the student's parameters are selected from the teacher"
        student = replace(student, spec=replace(student.spec, notes=(note,)))
    return student


def _surroundings(section: DistillSection, lessons: "tuple[Lesson, ...]") -> Any:
    """Return classes and preprocessing of a student that has none of its own."""
    from vitdeploy.compress.distill.students import Surroundings

    teacher = lessons[0].loaded if lessons else None
    preprocess = teacher.spec.preprocess if teacher else Preprocess((224, 224))
    if teacher is not None and teacher.class_output is not None and section.loss != "none":
        outputs = [t for t in teacher.parts[0].outputs if t.name == teacher.class_output]
        return Surroundings(int(outputs[0].shape[-1]), teacher.spec.label_names, preprocess)
    images = scan_images(section.path)
    return Surroundings(_class_count(images), images.label_names, preprocess)


def _class_count(images: ImageSet) -> int:
    """Return how many classes the images have; 0 without labels."""
    if images.labels is None:
        return 0
    return len(images.label_names) or max(images.labels) + 1


def _teacher_model(teacher: TeacherSection) -> ModelSection:
    return ModelSection(
        source=teacher.source, checkpoint=teacher.checkpoint, image_size=teacher.image_size
    )


def _require_free(folder: Path, *, force: bool) -> None:
    """Return where a model folder can be written; only one that was trained here is replaced."""
    ours = (folder / "config.json").is_file() and (folder / TRAINING_REPORT).is_file()
    if not (force and ours):
        require_free_output(folder, force=force)


def _write(result: "DistillResult", folder: Path) -> None:
    """Write the model folder beside its place, put it there, and remove the training's folder."""
    from vitdeploy.compress.distill.checkpoints import METRICS, folder_of

    training = folder_of(folder.resolve())
    staged = create_sibling(folder.resolve(), "partial")
    try:
        save_model_folder(result.loaded, staged)
        for name, text in training_documents(result).items():
            (staged / name).write_text(text, encoding="utf-8", newline="\n")
        shutil.copyfile(training / METRICS, staged / METRICS)
        if result.projections:
            from safetensors.torch import save_file

            save_file(result.projections, staged / "projections.safetensors")
        replace_folder(staged, folder.resolve())
    except BaseException as error:
        raise_if_full(error, folder)
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    end_training(folder)


def training_documents(result: "DistillResult") -> dict[str, str]:
    """Return the training's report by file name, for machines and for people."""
    from vitdeploy.compress.distill.curves import html_from_metrics

    facts = [
        ("top-1 before", _percent(result.top1_before)),
        ("top-1 after", _percent(result.top1_after)),
        *(("top-1 of a teacher", _percent(value)) for value in result.top1_teachers),
        ("loss", result.section.loss),
        ("epochs", str(result.section.training.epochs)),
        ("minutes", f"{result.seconds / 60:.1f}"),
    ]
    title = f"Training of {result.loaded.spec.name}"
    return {
        TRAINING_REPORT: json.dumps(training_report(result), indent=2) + "\n",
        "training.html": html_from_metrics(title, facts, result.metrics),
    }


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} %"
