"""The stages of a run, each a plain call: reference, export, parity, build, compare, time.

`pipeline.run` puts them in order. Nothing here knows an architecture, a runtime or how a report
looks.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import Artifact, BundleWriter
from vitdeploy.compress.int8 import Int8Result, quantize_int8
from vitdeploy.compress.placement import LEAST_INT8_PERCENT
from vitdeploy.documents import (
    REFERENCE,
    Compressed,
    Measured,
)
from vitdeploy.evaluation import collect_outputs, fidelity_rows
from vitdeploy.golden import write_golden
from vitdeploy.graph.save import save_model
from vitdeploy.image_sets import Chosen, Source
from vitdeploy.manifest import sha256_from_file
from vitdeploy.measure import StageClock, Subject, measure_latency
from vitdeploy.models.spec import ExportPart, LoadedModel
from vitdeploy.onnx_export import (
    Parity,
    check_parity,
    example_feeds,
    onnx_from_part,
    parity_batches,
    reference_runner,
)
from vitdeploy.progress import Progress
from vitdeploy.recipe import Int8Choices, Recipe
from vitdeploy.report import FidelityRow
from vitdeploy.runner import Feeds, Outputs, Runner
from vitdeploy.targets import BuildRequest, Settings, Target
from vitdeploy.targets.onnx import OrtRunner

GOLDEN_IMAGES = 4


@dataclass(frozen=True)
class Plan:
    """How one target's artefacts are to be made."""

    precision: str
    folder: str
    """Where in the bundle; the target's name, or another while candidates are compared."""
    settings: Settings = field(default_factory=dict)
    """Session settings on top of the target's own."""
    pinned: Int8Choices | None = None
    """INT8 as chosen before; searched for where None."""


@dataclass(frozen=True)
class Judged:
    """How close one target's artefacts are to the reference, on their own engine."""

    rows: list[FidelityRow]
    golden: dict[str, Outputs]
    """By part: the outputs on the first evaluation images."""


@dataclass(frozen=True)
class ExportedPart:
    """A part's FP32 graph and where it lies while the run lasts."""

    part: ExportPart
    model: ir.Model
    path: Path
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Work:
    """What every stage of a run needs."""

    recipe: Recipe
    clock: StageClock
    progress: Progress

    def stage(self, name: str) -> Any:
        """Begin a stage: told to the user and timed."""
        self.progress.stage(name)
        return self.clock.stage(name)


@dataclass(frozen=True)
class Job:
    """What building and comparing an artefact needs."""

    work: Work
    exported: list[ExportedPart]
    images: Chosen
    reference: dict[str, Outputs]
    """By part: outputs of the model as loaded on the evaluation images."""
    writer: BundleWriter


def note_all(work: Work, notes: tuple[str, ...]) -> None:
    """Tell the user every note."""
    for note in notes:
        work.progress.note(note)


def evaluation_feeds(images: Chosen, part: ExportPart, batch: int) -> Iterator[Feeds]:
    """Yield the evaluation images as feeds of `part`."""
    for pixels, _ in images.evaluation.batches(batch):
        yield {part.inputs[0].name: pixels}


def batch_of(recipe: Recipe, images: Chosen) -> int:
    """Return the batch of calibration and evaluation: fixed, or what fits a small machine."""
    if isinstance(recipe.export.batch, int):
        return recipe.export.batch
    height, width = images.preprocess.size
    return 8 if height * width <= 256 * 256 else 1


def reference_outputs(work: Work, loaded: LoadedModel, images: Chosen) -> dict[str, Outputs]:
    """Return by part the outputs of the model as loaded on all evaluation images."""
    outputs = {}
    batch = batch_of(work.recipe, images)
    for part in loaded.parts:
        with reference_runner(part) as runner:
            outputs[part.name] = collect_outputs(
                runner,
                evaluation_feeds(images, part, batch),
                work.recipe.export.batch,
                progress=lambda done: work.progress.step(done, len(images.evaluation)),
            )
    return outputs


def export_parts(
    work: Work,
    loaded: LoadedModel,
    images: Chosen,
    writer: BundleWriter,
    targets: dict[str, Target],
    folder: str = REFERENCE,
) -> list[ExportedPart]:
    """Return the FP32 graph of every part, written into `folder` of the bundle."""
    recipe = work.recipe
    opset = recipe.export.opset or max(target.OPSET for target in targets.values())
    exported = []
    for part in loaded.parts:
        model = onnx_from_part(part, images.example, recipe.export.batch, opset)
        path = writer.add_file(f"{folder}/{part.name}.onnx")
        files = save_model(model, path)
        size = sum(file.stat().st_size for file in files)
        exported.append(ExportedPart(part, model, path, sha256_from_file(path), size))
    return exported


def check_parts(exported: list[ExportedPart], images: Chosen, recipe: Recipe) -> list[Parity]:
    """Return the parity rows of every part; raises ExportError on a difference."""
    rows = []
    for item in exported:
        with OrtRunner(item.path) as runner:
            batches = parity_batches(item.part, recipe.export.batch)
            rows += check_parity(item.part, runner, images.example, batches)
    return rows


def build_target(job: Job, name: str, target: Target, plan: Plan) -> list[Compressed]:
    """Return the artefacts of every part for one target, as planned."""
    results = []
    for item in job.exported:
        model, quantized = item.model, None
        kept = plan.precision
        if kept == "int8":
            with job.work.stage(f"quantize {name}"):
                quantized = quantize(job, target, item, plan.pinned)
            model = quantized.model
            kept = "int8" if quantized.int8_macs_percent >= LEAST_INT8_PERCENT else "mixed"
        with job.work.stage(f"build {name}"):
            path = job.writer.add_file(f"{plan.folder}/{item.part.name}.onnx")
            probed = job.images.calibration or job.images.evaluation
            request = BuildRequest(
                item.part.name,
                model,
                kept,
                path.parent,
                item.sha256,
                images=partial(filled_feeds, job, item, probed),
                trt_version=job.work.recipe.export.trt_version,
            )
            artifact = with_settings(target.build(request), plan.settings)
        results.append(Compressed(artifact, quantized))
    return results


def with_settings(artifact: Artifact, settings: Settings) -> Artifact:
    """Return the artefact with session settings on top of its own."""
    return replace(artifact, settings={**artifact.settings, **settings})


def filled_feeds(job: Job, item: ExportedPart, source: Source) -> Iterator[Feeds]:
    """Yield images as feeds of a part, all of full size where its batch is fixed."""
    recipe = job.work.recipe
    batch = batch_of(recipe, job.images)
    for pixels, _ in source.batches(batch):
        # A graph of fixed batch takes no short batch; one image twice changes no range.
        filled = pixels
        if isinstance(recipe.export.batch, int) and len(pixels) < batch:
            filled = np.resize(pixels, (batch, *pixels.shape[1:]))
        yield {item.part.inputs[0].name: filled}


def quantize(
    job: Job, target: Target, item: ExportedPart, pinned: Int8Choices | None
) -> Int8Result:
    """Return a part's graph in INT8, calibrated on the run's images."""
    work = job.work
    calibration = job.images.require_calibration()

    return quantize_int8(
        item.model,
        target.quant_scheme(),
        partial(filled_feeds, job, item, calibration),
        work.recipe.int8,
        progress=lambda done: work.progress.step(done, len(calibration)),
        pinned=pinned,
    )


def compare(job: Job, target: Target, compressed: list[Compressed]) -> Judged:
    """Return the fidelity of a target's artefacts on their own engine.

    Raises:
        DataError: an output is not finite, or of another shape.
    """
    rows = []
    golden = {}
    work, images = job.work, job.images
    batch = batch_of(work.recipe, images)
    for item in compressed:
        artifact = item.artifact
        feeds = (
            {artifact.inputs[0].name: pixels} for pixels, _ in images.evaluation.batches(batch)
        )
        with target.open(artifact, work.recipe.measure.threads) as runner:
            outputs = collect_outputs(
                runner,
                feeds,
                work.recipe.export.batch,
                progress=lambda done: work.progress.step(done, len(images.evaluation)),
            )
        golden[artifact.part] = {name: v[:GOLDEN_IMAGES] for name, v in outputs.items()}
        rows += fidelity_rows(
            (artifact.target, artifact.part),
            job.reference[artifact.part],
            outputs,
            images.labels,
            classes=images.class_output,
            centred=work.recipe.model.random_weights,
        )
    return Judged(rows, golden)


def timing_feeds(recipe: Recipe, images: Chosen, part: ExportPart) -> tuple[Feeds, int]:
    """Return what a part is fed while it is timed, and the batch size."""
    fixed = recipe.export.batch
    batch = fixed if isinstance(fixed, int) else recipe.measure.batch
    return example_feeds(part, images.example, batch), batch


def time_artifacts(
    work: Work,
    targets: dict[str, Target],
    compressed: list[Compressed],
    exported: list[ExportedPart],
    images: Chosen,
) -> list[Measured]:
    """Return the latencies of the FP32 reference and of every artefact that runs here, in turns."""
    measure = work.recipe.measure
    if measure.seconds == 0:
        return []
    timed = [c.artifact for c in compressed if targets[c.artifact.target].untimed_reason() is None]
    rows = []
    for item in exported:
        feeds, batch = timing_feeds(work.recipe, images, item.part)
        artifacts = [artifact for artifact in timed if artifact.part == item.part.name]
        with ExitStack() as stack:
            runners: dict[str, tuple[str, Runner]] = {
                REFERENCE: ("fp32", OrtRunner(item.path, measure.threads))
            }
            for artifact in artifacts:
                opened = targets[artifact.target].open(artifact, measure.threads)
                runners[artifact.target] = (artifact.precision, opened)
            for _, runner in runners.values():
                stack.enter_context(runner)
            subjects = [Subject(name, r, feeds, batch) for name, (_, r) in runners.items()]
            timings = measure_latency(subjects, measure.seconds / len(exported), work.progress.step)
            rows += [
                Measured(name, item.part.name, r.engine, r.threads, precision, timings[name])
                for name, (precision, r) in runners.items()
            ]
    return rows


def write_golden_of_target(writer: BundleWriter, target: str, judged: Judged) -> None:
    """Write what a target's artefacts gave for the first evaluation images."""
    for part, outputs in judged.golden.items():
        write_golden(writer.folder, f"{part}.{target}", {}, outputs)


def device_golden(job: Job) -> dict[str, tuple[Feeds, Outputs]]:
    """Return by part inputs and reference outputs for the device: a few images, or one batch."""
    batch = job.work.recipe.export.batch
    count = max(GOLDEN_IMAGES, batch if isinstance(batch, int) else 1)
    pixels = job.images.evaluation.first(count)
    found: dict[str, tuple[Feeds, Outputs]] = {}
    for item in job.exported:
        outputs = {n: v[: len(pixels)] for n, v in job.reference[item.part.name].items()}
        size = max(len(pixels), batch if isinstance(batch, int) else 1)  # few images: they repeat
        found[item.part.name] = (
            {item.part.inputs[0].name: np.resize(pixels, (size, *pixels.shape[1:]))},
            {name: np.resize(value, (size, *value.shape[1:])) for name, value in outputs.items()},
        )
    return found


def write_golden_of(
    writer: BundleWriter, item: ExportedPart, reference: dict[str, Outputs], images: Chosen
) -> None:
    """Write the first evaluation images and the reference outputs of one part."""
    pixels = images.evaluation.first(GOLDEN_IMAGES)
    outputs = {name: v[: len(pixels)] for name, v in reference[item.part.name].items()}
    write_golden(writer.folder, item.part.name, {item.part.inputs[0].name: pixels}, outputs)


def remove_reference(writer: BundleWriter) -> None:
    """Take the FP32 ONNX out of the bundle folder."""
    shutil.rmtree(writer.folder / REFERENCE)
