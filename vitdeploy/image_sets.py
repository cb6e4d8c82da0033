"""Which images a run calibrates and compares on: the user's, the packaged or rendered ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from vitdeploy.data import (
    Batch,
    ImageLoader,
    ImageSet,
    Preprocess,
    packaged_set,
    scan_images,
    synthetic_set,
)
from vitdeploy.errors import CompressionError, UsageError
from vitdeploy.models.spec import LoadedModel
from vitdeploy.recipe import Recipe
from vitdeploy.report import ImagesInfo

NEEDS_CALIBRATION = ("int8", "w4a16", "w4a8", "auto")
_SYNTHETIC_EVALUATION = 64
_LEAST_HELD_OUT = 16
_EXAMPLES = 3
_MOST_PROMPTED_PIXELS = 8 * 1024 * 1024
"""Of all evaluation pictures of a model with prompts together, as the model reads them: 8 of SAM's.
An image encoder of that size takes seconds a picture, and every picture gets several prompts."""


@dataclass(frozen=True)
class Source:
    """An image set with the model's preprocessing."""

    images: ImageSet
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def loader(self) -> ImageLoader:
        """The one loader, which remembers what it skipped."""
        return ImageLoader(self.images, self.preprocess)

    def batches(self, batch: int) -> Iterator[Batch]:
        """Yield (images (n, 3, H, W) float32, indices (n,)); see `ImageLoader.batches`."""
        return self.loader.batches(batch)

    @property
    def readable(self) -> tuple[int, ...]:
        """Places in the set of the images that could be read, after a pass over it."""
        skipped = {entry.index for entry in self.loader.skipped}
        return tuple(index for index in range(len(self.images)) if index not in skipped)

    def first(self, count: int) -> np.ndarray:
        """Return (n, 3, H, W) float32: the first `count` readable images, or all there are."""
        # A loader of its own: the shared one counts what a whole pass skips.
        batches = ImageLoader(self.images, self.preprocess).batches(1)
        return np.concatenate([pixels for pixels, _ in islice(batches, count)])

    def describe(self) -> ImagesInfo:
        """Return what a report says of the set, after a pass over it."""
        skipped = len(self.loader.skipped)
        return ImagesInfo(
            name=self.images.name,
            origin=self.images.origin,
            images=len(self.images) - skipped,
            skipped=skipped,
            digest=self.images.digest(),
        )


@dataclass(frozen=True)
class Chosen:
    """The images of one run."""

    calibration: Source | None
    """None where the precision needs none."""
    evaluation: Source
    notes: tuple[str, ...] = ()
    class_output: str | None = "logits"
    """The output that the labels are about, where the model has one."""

    @property
    def preprocess(self) -> Preprocess:
        """The model's preprocessing."""
        return self.evaluation.preprocess

    @cached_property
    def example(self) -> np.ndarray:
        """(n, 3, H, W) float32: the first images, for tracing, parity and timing."""
        return (self.calibration or self.evaluation).first(_EXAMPLES)

    @property
    def labels(self) -> np.ndarray | None:
        """(n,) labels of the evaluation images that could be read, after a pass over them."""
        images = self.evaluation.images
        if images.labels is None:
            return None
        return np.array([images.labels[index] for index in self.evaluation.readable])

    def require_calibration(self) -> Source:
        """Return the calibration images.

        Raises:
            CompressionError: there are none.
        """
        if self.calibration is None:
            raise CompressionError("this step needs calibration images; give --calib PATH.")
        return self.calibration


def reject_missing_calibration(recipe: Recipe) -> None:
    """Return where calibration images are given or not needed; looks before any work is done.

    Raises:
        UsageError: a model of the user's own is to be quantised without images.
        DataError: the path does not exist.
    """
    for path in (recipe.calibration.path, recipe.evaluation.path):
        if path is not None and path != "synthetic" and not Path(path).exists():
            scan_images(path)
    needed = recipe.precision in NEEDS_CALIBRATION and recipe.calibration.path is None
    if needed and (recipe.model.is_onnx or Path(recipe.model.source).is_dir()):
        raise UsageError(
            f"'{recipe.model.source}' is a model of your own, so --{recipe.precision} needs "
            "images like those it will see: --calib FOLDER (a few hundred; class folders or a "
            "list file are fine), or --calib synthetic for a trial."
        )


def choose_sets(recipe: Recipe, loaded: LoadedModel) -> Chosen:
    """Return the images to calibrate and to compare on.

    Raises:
        DataError: a set is missing, empty, or its classes are not the model's.
    """
    calibration, left_over = _calibration(recipe, loaded)
    evaluation, note = _evaluation(recipe, loaded, calibration, left_over)
    preprocess = loaded.spec.preprocess
    notes = [note] if note else []
    if recipe.evaluation.samples is None and any(part.example for part in loaded.parts):
        height, width = preprocess.size
        most = max(1, _MOST_PROMPTED_PIXELS // (height * width))
        if len(evaluation) > most:
            notes.append(
                f"compared on {most} of {len(evaluation)} pictures, for each takes long and gets "
                "several prompts; --eval-samples N takes more."
            )
            evaluation = evaluation.sample(most, recipe.seed)
    return Chosen(
        Source(calibration, preprocess) if calibration is not None else None,
        Source(evaluation, preprocess),
        tuple(notes),
        loaded.class_output,
    )


def stamps_of(chosen: Chosen, recipe: Recipe) -> tuple[str, ...]:
    """Return what a reader of the report must know first."""
    stamps = ["random-weights"] if recipe.model.random_weights else []
    if chosen.calibration and chosen.calibration.images.origin in ("generic", "synthetic"):
        stamps.append(f"calibration: {chosen.calibration.images.origin}")
    if chosen.evaluation.images.origin in ("generic", "synthetic"):
        stamps.append(f"evaluation: {chosen.evaluation.images.origin}")
    return tuple(stamps)


def _calibration(recipe: Recipe, loaded: LoadedModel) -> tuple[ImageSet | None, ImageSet | None]:
    """Return the calibration set and the user's images that were not drawn for it."""
    if recipe.precision not in NEEDS_CALIBRATION:
        return None, None
    section = recipe.calibration
    if section.path == "synthetic":
        return synthetic_set(section.samples, recipe.seed), None
    if section.path is None:
        return packaged_set(loaded.spec.calibration_set, "calib").sample(
            section.samples, recipe.seed
        ), None
    every = scan_for_model(section.path, loaded)
    drawn = every.sample(section.samples, recipe.seed)
    return drawn, _without(every, drawn)


def _evaluation(
    recipe: Recipe,
    loaded: LoadedModel,
    calibration: ImageSet | None,
    left_over: ImageSet | None,
) -> tuple[ImageSet, str | None]:
    section = recipe.evaluation
    if section.path == "synthetic":
        count = section.samples or _SYNTHETIC_EVALUATION
        return synthetic_set(count, recipe.seed + 1), None
    if section.path is not None:
        every = scan_for_model(section.path, loaded)
        return _limited(every, section.samples, recipe.seed), None
    if left_over is not None and len(left_over) >= _LEAST_HELD_OUT:
        limit = section.samples or recipe.calibration.samples
        note = "compared on the calibration folder's images that were not used to calibrate."
        return _limited(left_over, limit, recipe.seed), note
    if left_over is not None and calibration is not None:
        note = "compared on the calibration images themselves; give --eval PATH for held-out ones."
        return _limited(calibration, section.samples, recipe.seed), note
    return _limited(
        packaged_set(loaded.spec.calibration_set, "eval"), section.samples, recipe.seed
    ), None


def scan_for_model(path: str, loaded: LoadedModel) -> ImageSet:
    """Return the user's images; their classes matter only to a model with logits.

    Raises:
        DataError: no readable images, or classes that are not the model's.
    """
    name = loaded.class_output
    logits = [t for part in loaded.parts for t in part.outputs if t.name == name]
    if not logits:
        return replace(scan_images(path), labels=None, label_names=())
    classes = logits[0].shape[-1]
    count = classes if isinstance(classes, int) else None
    return scan_images(path, loaded.spec.label_names, count)


def _limited(images: ImageSet, samples: int | None, seed: int) -> ImageSet:
    return images if samples is None else images.sample(samples, seed)


def _without(every: ImageSet, drawn: ImageSet) -> ImageSet:
    taken = set(drawn.paths)
    rest = [index for index, path in enumerate(every.paths) if path not in taken]
    labels = None if every.labels is None else tuple(every.labels[i] for i in rest)
    return replace(every, paths=tuple(every.paths[i] for i in rest), labels=labels)
