"""What a distillation refuses before it begins, and what it warns of."""

from collections.abc import Sequence
from typing import Any

from vitdeploy.compress.distill.objective import Aims
from vitdeploy.compress.distill.teachers import Lesson
from vitdeploy.data import ImageSet
from vitdeploy.errors import CompressionError, DataError, UsageError
from vitdeploy.models import describe
from vitdeploy.models.spec import LoadedModel
from vitdeploy.recipe import DistillSection


def require_teachers(section: DistillSection, teachers: int) -> None:
    """Return where there are teachers if, and only if, something is asked of them.

    Raises:
        UsageError: there are not.
    """
    asked = section.loss != "none" or section.features > 0
    if asked and not teachers:
        raise UsageError(
            f"distillation type '{section.loss}' needs a teacher: --teacher MODEL (an alias, "
            "timm:NAME, a model folder or an .onnx file; repeatable). To train on labels alone: "
            "--distillation-type none."
        )
    if teachers and not asked:
        raise UsageError(
            "nothing is asked of the teacher: distillation type 'none' without --features reads "
            "labels alone. Leave --teacher away, or use soft, hard or --features 1."
        )


def require_usable_images(aims: Aims, images: ImageSet) -> None:
    """Return where the images can be learnt from.

    Raises:
        DataError: labels are needed and missing, or there is one class only.
    """
    if images.labels is not None and len(set(images.labels)) == 1:
        raise DataError(
            f"all {len(images)} training images of '{images.name}' are of one class, of which "
            "nothing can be learnt. Give a folder with one folder per class, or a flat folder of "
            "images without labels (then --alpha 1)."
        )
    if images.labels is None and aims.loss != "none" and aims.alpha < 1:
        raise DataError(
            f"'{images.name}' has no labels, and {1 - aims.alpha:g} of the loss is on labels. "
            "Give class folders, or --alpha 1 to learn from the teacher alone."
        )
    if not aims.has_labels and aims.loss == "none" and not aims.features:
        raise DataError(
            f"'{images.name}' has no labels and there is no teacher, so there is nothing to learn "
            "from. Give class folders, or a --teacher."
        )


def require_classes(student: LoadedModel, lessons: Sequence[Lesson]) -> None:
    """Return where student and teachers that have classes have the same.

    Raises:
        CompressionError: another number of classes, or others by name.
    """
    own = class_count(student)
    for lesson in lessons:
        other = class_count(lesson.loaded)
        if own is None or other is None:
            continue
        if own != other:
            raise CompressionError(
                f"the student '{student.spec.name}' has {own} classes and teacher "
                f"'{lesson.loaded.spec.name}' has {other}, so its logits teach it nothing. Use a "
                "teacher of the same classes, or its features: --distillation-type none "
                "--features 1."
            )
        names = student.spec.label_names, lesson.loaded.spec.label_names
        if all(names) and names[0] != names[1]:
            place = next(i for i, (a, b) in enumerate(zip(*names, strict=True)) if a != b)
            raise CompressionError(
                f"class {place} is '{names[0][place]}' to the student and '{names[1][place]}' to "
                f"teacher '{lesson.loaded.spec.name}'. Both must have the same classes in the "
                "same order."
            )


def size_note(student: LoadedModel, teacher: LoadedModel) -> str | None:
    """Return a warning where the student is larger than the teacher."""
    own, other = describe(student).parameters, describe(teacher).parameters
    if own <= other:
        return None
    return (
        f"the student has {own / 1e6:.2f} million parameters, more than the {other / 1e6:.2f} of "
        f"teacher '{teacher.spec.name}'; a larger teacher usually teaches better."
    )


def takes_token(model: Any, section: DistillSection) -> bool:
    """Return whether the student's distillation token is taught.

    Raises:
        CompressionError: it is asked for, and there is none.
    """
    has_token = hasattr(model, "set_distilled_training")
    if section.token and not has_token:
        raise CompressionError(
            f"{type(model).__name__} has no distillation token. Students that have one: "
            "deit-tiny-distilled, -small-, -base- and timm's deit*_distilled_*; or leave --token "
            "away."
        )
    return has_token and section.loss != "none" and section.token is not False


def class_count(loaded: LoadedModel) -> int | None:
    """Return how many classes a model tells apart; None for an image encoder."""
    name = loaded.class_output
    shapes = [t.shape[-1] for part in loaded.parts for t in part.outputs if t.name == name]
    return shapes[0] if shapes and isinstance(shapes[0], int) else None
