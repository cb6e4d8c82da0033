"""`--bake-preprocessing`: artefacts that read pictures, proved against what they were.

It comes last: calibration, comparison and choice work on prepared pixels, which many engines and
the reference share. What is put in front of a graph is each target's matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Artifact, TensorInfo
from vitdeploy.data import Preprocess
from vitdeploy.data.baked import (
    PICTURES,
    golden_pictures,
    prepared_as_baked,
    unbakeable_reason,
)
from vitdeploy.errors import DataError, ExportError, UnsupportedError, UsageError
from vitdeploy.evaluation import collect_outputs
from vitdeploy.findings import Compressed
from vitdeploy.golden import write_golden
from vitdeploy.job import ExportedPart, Job
from vitdeploy.manifest import sha256_from_file
from vitdeploy.measure import Subject, measure_latency
from vitdeploy.metrics import METRICS, Comparison
from vitdeploy.models.spec import LoadedModel
from vitdeploy.recipe import Recipe
from vitdeploy.runner import Outputs, Runner
from vitdeploy.selection import Selection
from vitdeploy.targets import load_baker, load_target
from vitdeploy.targets.onnx import OrtRunner
from vitdeploy.zero_shot import reads_texts

MOST_LEVELS_OFF = 2.25
"""Of 255, between pixels prepared in a graph and by Pillow: ONNX Runtime and OpenVINO round halves
otherwise after each axis, and bf16 keeps 8 bits of what a level becomes."""
MEAN_LEVELS_OFF = 0.35
"""Pictures that are enlarged by a whole factor have many halves: 0.14 measured; bf16 adds 0.1."""
LEAST_DB = 27.0
"""Outputs of either input may not differ by more, however sensitive the model is to a level."""
_LONGEST_EDGE = 640
"""Pixels of the pictures a bundle keeps."""
_TIMED_SECONDS = 1.0


class _Picture(NamedTuple):
    """A picture of the evaluation set, as it is and prepared."""

    levels: NDArray[np.uint8]
    """(height, width, 3)."""
    pixels: NDArray[np.float32]
    """(3, H, W), as the model reads it."""


def require_bakeable(recipe: Recipe, loaded: LoadedModel) -> None:
    """Return where the model's preprocessing can be put into the artefacts the recipe asks for.

    Raises:
        UsageError: pictures are to be cut into tiles, which happens before.
        UnsupportedError: the model or its preprocessing does not allow it.
    """
    if not recipe.export.bake_preprocessing:
        return
    if recipe.export.tiles is not None:
        raise UsageError(
            "--bake-preprocessing reads whole pictures and --tiles cuts them; give one of them."
        )
    if any(part.example is not None and not reads_texts(part) for part in loaded.parts):
        raise UnsupportedError(
            f"--bake-preprocessing is for models that read pictures alone; '{loaded.spec.name}' "
            "takes prompts too, whose coordinates follow from how a picture was resized."
        )
    reason = unbakeable_reason(loaded.spec.preprocess)
    if reason is not None:
        raise UnsupportedError(
            f"--bake-preprocessing cannot put this model's preprocessing into a graph: {reason}."
        )


def bake_preprocessing(job: Job, selected: Mapping[str, Selection]) -> dict[str, Selection]:
    """Return what was kept, its artefacts reading `PICTURES`; their golden tensors are pictures.

    Raises:
        ExportError: an engine prepares pictures otherwise than Pillow, or its outputs change.
        DataError: no evaluation picture can be read.
    """
    pictures = _pictures(job)
    baked = {}
    for name, found in selected.items():
        with job.work.stage(f"bake {name}"):
            results = [_baked(job, item, pictures) for item in found.compressed]
        notes = tuple(note for _, note in results if note)
        baked[name] = replace(
            found, compressed=[item for item, _ in results], notes=(*found.notes, *notes)
        )
    for item in job.exported:
        if not reads_texts(item.part):
            _write_reference(job, item, pictures)
    return baked


def _pictures(job: Job) -> list[_Picture]:
    """Return the first evaluation pictures that can be read, no larger than a bundle keeps."""
    source = job.images.evaluation
    found: list[_Picture] = []
    for index in range(len(source.images)):
        if len(found) == job.reference.golden_pictures:
            break
        try:
            picture = source.images.open(index)
        except DataError:
            continue
        picture.thumbnail((_LONGEST_EDGE, _LONGEST_EDGE))
        levels = np.asarray(picture)
        found.append(_Picture(levels, prepared_as_baked(levels, source.preprocess)))
    if not found:
        raise DataError(f"no picture of '{source.images.name}' can be read.")
    return found


def _baked(
    job: Job, item: Compressed, pictures: Sequence[_Picture]
) -> tuple[Compressed, str | None]:
    """Return an artefact with its preprocessing, and a line on how exact that is."""
    artifact, preprocess = item.artifact, job.images.preprocess
    part = next(e.part for e in job.exported if e.part.name == artifact.part)
    if reads_texts(part):
        return item, None
    open_artifact = load_target(artifact.target).open
    with open_artifact(artifact) as runner:
        before = _outputs_for_pixels(runner, artifact, pictures)
    shipped = with_preprocessing(artifact, preprocess)
    with open_artifact(shipped) as runner:
        feeds = [{PICTURES: picture.levels[None]} for picture in pictures]
        after = collect_outputs(runner, feeds, _batch_of(shipped))
    write_golden(job.writer.folder, f"{artifact.part}.{artifact.target}", {}, after)
    alone = load_baker(artifact.target).preprocessing_alone(preprocess, artifact)
    with alone as runner:
        most, mean = _levels_off(runner, pictures, preprocess)
        seconds = min(job.work.recipe.measure.seconds, _TIMED_SECONDS)
        spent = _milliseconds(runner, pictures[0], seconds)
    sqnr_db = min(_sqnr_db(before[name], after[name]) for name in before)
    where = f"{artifact.target}, {artifact.part}"
    if most > MOST_LEVELS_OFF or mean > MEAN_LEVELS_OFF or sqnr_db < LEAST_DB:
        raise ExportError(
            f"{where}: the engine prepares pictures otherwise than Pillow does: at most "
            f"{most:.2f} levels of 255 (allowed {MOST_LEVELS_OFF:g}), {mean:.3f} in the mean "
            f"(allowed {MEAN_LEVELS_OFF:g}), and the outputs agree to {sqnr_db:.1f} dB (at least "
            f"{LEAST_DB:g}). Leave --bake-preprocessing out."
        )
    height, width = pictures[0].levels.shape[:2]
    time = (
        "" if spent is None else f"; {spent:.2f} ms for {width} x {height} pixels, not in latency"
    )
    note = (
        f"{where}: reads '{PICTURES}' (batch, height, width, 3) uint8 and prepares them itself, on "
        f"{len(pictures)} pictures at most {most:.2f} levels of 255 off Pillow, {mean:.4f} in the "
        f"mean; outputs agree to {sqnr_db:.1f} dB{time}."
    )
    return replace(item, artifact=shipped), note


def with_preprocessing(artifact: Artifact, preprocess: Preprocess) -> Artifact:
    """Return the artefact, its files changed to read pictures."""
    files = load_baker(artifact.target).bake(artifact, preprocess)
    pixels, *others = artifact.inputs
    shape = (pixels.shape[0], "picture_height", "picture_width", 3)
    return replace(
        artifact,
        sha256=sha256_from_file(artifact.path),
        bytes=sum(file.stat().st_size for file in files),
        inputs=(TensorInfo(PICTURES, shape, "uint8"), *others),
        files=files,
    )


def _write_reference(job: Job, item: ExportedPart, pictures: Sequence[_Picture]) -> None:
    """Write the golden pictures of a part and what its FP32 graph makes of them prepared."""
    name = item.part.inputs[0].name
    batch = job.work.recipe.export.batch
    with OrtRunner(item.path) as runner:
        feeds = [{name: picture.pixels[None]} for picture in pictures]
        outputs = collect_outputs(runner, feeds, batch)
    golden = golden_pictures(picture.levels for picture in pictures)
    write_golden(job.writer.folder, item.part.name, golden, outputs)


def _outputs_for_pixels(
    runner: Runner, artifact: Artifact, pictures: Sequence[_Picture]
) -> Outputs:
    feeds = [{artifact.inputs[0].name: picture.pixels[None]} for picture in pictures]
    return collect_outputs(runner, feeds, _batch_of(artifact))


def _batch_of(artifact: Artifact) -> int | str:
    first = artifact.inputs[0].shape[0]
    return first if isinstance(first, int) else "dynamic"


def _levels_off(
    runner: Runner, pictures: Sequence[_Picture], preprocess: Preprocess
) -> tuple[float, float]:
    """Return the largest and the mean difference to Pillow, in levels of 255."""
    scale = 255.0 * np.asarray(preprocess.std)[:, None, None]
    off = [
        np.abs(runner({PICTURES: picture.levels[None]})["pixel_values"][0] - picture.pixels) * scale
        for picture in pictures
    ]
    return max(float(one.max()) for one in off), float(np.mean([one.mean() for one in off]))


def _milliseconds(runner: Runner, picture: _Picture, seconds: float) -> float | None:
    """Return the median time of one picture; None without a budget."""
    if seconds == 0:
        return None
    subject = Subject("preprocessing", runner, {PICTURES: picture.levels[None]}, 1)
    return float(np.median(measure_latency([subject], seconds)["preprocessing"].samples_ms))


def _sqnr_db(expected: np.ndarray, seen: np.ndarray) -> float:
    score = METRICS["sqnr_db"](Comparison(expected, seen))
    return float("inf") if score is None else score.value
