"""One run, from a recipe to a bundle and its report, as a dozen plain calls.

Everything is decided by the recipe; nothing here knows an architecture, a runtime or how a
report looks.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import BundleWriter
from vitdeploy.compress.int8 import Int8Result, quantize_int8
from vitdeploy.documents import (
    REFERENCE,
    Compressed,
    Findings,
    Measured,
    assemble_report,
    write_documents,
)
from vitdeploy.errors import UsageError
from vitdeploy.evaluation import collect_outputs, fidelity_rows
from vitdeploy.golden import write_golden
from vitdeploy.graph.save import save_model
from vitdeploy.image_sets import Chosen, choose_sets, reject_missing_calibration
from vitdeploy.manifest import sha256_from_file
from vitdeploy.measure import StageClock, Subject, measure_latency
from vitdeploy.models import describe, load
from vitdeploy.models.spec import ExportPart, LoadedModel, LoadOptions
from vitdeploy.onnx_export import (
    Parity,
    check_parity,
    onnx_from_part,
    parity_batches,
    reference_runner,
)
from vitdeploy.output import require_free_output
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.recipe import Recipe, TargetName, recipe_from_dict
from vitdeploy.report import FidelityRow, Report
from vitdeploy.runner import Feeds, Outputs, Runner
from vitdeploy.targets import BuildRequest, Target, load_target
from vitdeploy.targets.onnx import OrtRunner

GOLDEN_IMAGES = 4


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


def run(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Do what the recipe says; return the report of the bundle that was written.

    A failed gate is no exception: see `Report.passed`.

    Args:
        recipe: what to do.
        output: bundle folder; wins over the recipe's.
        force: replace a bundle that is already there.
        progress: told of stages and steps.

    Raises:
        VitdeployError: one of its subclasses, by cause; nothing is written then.
    """
    work = Work(recipe, StageClock(), progress or SilentProgress())
    folder = output_folder(recipe, output)
    require_free_output(folder, force=force)
    targets: dict[str, Target] = {name: load_target(name) for name in recipe.targets}
    for target in targets.values():
        target.check_precision(recipe.precision)
    reject_missing_calibration(recipe)
    with BundleWriter(folder, force=force) as writer:
        with work.stage("load"):
            loaded = load(load_options(recipe))
            recipe = with_fixed_batch(recipe, loaded)
            work = replace(work, recipe=recipe)
            description = describe(loaded)
            images = choose_sets(recipe, loaded)
        _note_all(work, (*loaded.spec.notes, *images.notes))
        with work.stage("reference"):
            reference = _reference_outputs(work, loaded, images)
        with work.stage("export"):
            exported = _export_parts(work, loaded, images, writer, targets)
        with work.stage("parity"):
            parity = _check_parts(exported, images, recipe)
        compressed = [
            item
            for name, target in targets.items()
            for item in _build_target(work, name, target, exported, images, writer)
        ]
        with work.stage("fidelity"):
            fidelity = _compare(work, targets, compressed, reference, images, writer)
        with work.stage("latency"):
            latency = _time(work, targets, compressed, exported, images)
        for part in exported:
            _write_golden(writer, part, reference, images)
        size = sum(part.bytes for part in exported)
        stages = work.clock.records
        findings = Findings(compressed, size, fidelity, parity, latency, stages)
        report = assemble_report(recipe, loaded, description, images, findings)
        if not recipe.keep_reference:
            _remove_reference(writer)
        write_documents(writer, report, loaded, resolved_recipe(recipe, compressed))
    return report


def export(
    model: str,
    *,
    output: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **sections: Any,
) -> Report:
    """Return the report of one exported model; the sections are those of a `Recipe`.

    `export("vit-digits", precision="int8", targets=["onnx"])` is what
    `vitdeploy export vit-digits --int8 --target onnx` does. `model` may also be given more
    exactly: `export("vit-base", model_options={"checkpoint": "w.safetensors"})`.

    Raises:
        VitdeployError: as `run`; UsageError for an unknown section.
    """
    options = dict(sections.pop("model_options", {}))
    recipe = recipe_from_dict({"model": {"source": model, **options}, **sections}, "export")
    return run(recipe, output=output, force=force, progress=progress)


def output_folder(recipe: Recipe, output: str | Path | None = None) -> Path:
    """Return the bundle folder: as asked, else ./<model>-<precision>."""
    if output is not None:
        return Path(output)
    if recipe.output is not None:
        return Path(recipe.output)
    stem = recipe.model.source.rstrip("/\\").replace("\\", "/").split("/")[-1].split(":")[-1]
    name = stem.removesuffix(".onnx")
    if name in ("", ".", ".."):
        raise UsageError(f"no output name follows from '{recipe.model.source}'; give --output DIR.")
    return Path(f"{name}-{recipe.precision}")


def with_fixed_batch(recipe: Recipe, loaded: LoadedModel) -> Recipe:
    """Return the recipe with the batch that an ONNX file is fixed to, where it is."""
    first = loaded.parts[0].inputs[0].shape[0]
    if loaded.parts[0].file is None or not isinstance(first, int):
        return recipe
    export = recipe.export.model_copy(update={"batch": first})
    return recipe.model_copy(update={"export": export})


def load_options(recipe: Recipe) -> LoadOptions:
    """Return what `models.load` needs of a recipe."""
    model = recipe.model
    batch = recipe.export.batch
    return LoadOptions(
        source=model.source,
        checkpoint=Path(model.checkpoint) if model.checkpoint else None,
        random_weights=model.random_weights,
        image_size=model.image_size,
        outputs=model.outputs,
        seed=recipe.seed,
        preprocess=model.preprocess,
        batch=batch if isinstance(batch, int) else None,
    )


def _note_all(work: Work, notes: tuple[str, ...]) -> None:
    for note in notes:
        work.progress.note(note)


def _evaluation_feeds(images: Chosen, part: ExportPart, batch: int) -> Iterator[Feeds]:
    for pixels, _ in images.evaluation.batches(batch):
        yield {part.inputs[0].name: pixels}


def _batch_of(recipe: Recipe, images: Chosen) -> int:
    """Return the batch of calibration and evaluation: fixed, or what fits a small machine."""
    if isinstance(recipe.export.batch, int):
        return recipe.export.batch
    height, width = images.preprocess.size
    return 8 if height * width <= 256 * 256 else 1


def _reference_outputs(work: Work, loaded: LoadedModel, images: Chosen) -> dict[str, Outputs]:
    outputs = {}
    batch = _batch_of(work.recipe, images)
    for part in loaded.parts:
        with reference_runner(part) as runner:
            outputs[part.name] = collect_outputs(
                runner,
                _evaluation_feeds(images, part, batch),
                work.recipe.export.batch,
                progress=lambda done: work.progress.step(done, len(images.evaluation)),
            )
    return outputs


def _export_parts(
    work: Work,
    loaded: LoadedModel,
    images: Chosen,
    writer: BundleWriter,
    targets: dict[str, Target],
) -> list[ExportedPart]:
    recipe = work.recipe
    opset = recipe.export.opset or max(target.OPSET for target in targets.values())
    exported = []
    for part in loaded.parts:
        model = onnx_from_part(part, images.example, recipe.export.batch, opset)
        path = writer.add_file(f"{REFERENCE}/{part.name}.onnx")
        files = save_model(model, path)
        size = sum(file.stat().st_size for file in files)
        exported.append(ExportedPart(part, model, path, sha256_from_file(path), size))
    return exported


def _check_parts(exported: list[ExportedPart], images: Chosen, recipe: Recipe) -> list[Parity]:
    rows = []
    for item in exported:
        with OrtRunner(item.path) as runner:
            batches = parity_batches(item.part, recipe.export.batch)
            rows += check_parity(item.part, runner, images.example, batches)
    return rows


def _build_target(
    work: Work,
    name: str,
    target: Target,
    exported: list[ExportedPart],
    images: Chosen,
    writer: BundleWriter,
) -> list[Compressed]:
    results = []
    precision = work.recipe.precision
    for item in exported:
        model, quantized = item.model, None
        if precision == "int8":
            with work.stage(f"quantize {name}"):
                quantized = _quantize(work, name, target, item, images)
            model = quantized.model
        with work.stage(f"build {name}"):
            path = writer.add_file(f"{name}/{item.part.name}.onnx")
            request = BuildRequest(item.part.name, model, precision, path.parent, item.sha256)
            artifact = target.build(request)
        writer.add_artifact(artifact)
        results.append(Compressed(artifact, quantized))
    return results


def _quantize(
    work: Work, name: str, target: Target, item: ExportedPart, images: Chosen
) -> Int8Result:
    batch = _batch_of(work.recipe, images)
    calibration = images.require_calibration()

    def batches() -> Iterator[Feeds]:
        for pixels, _ in calibration.batches(batch):
            # A graph of fixed batch takes no short batch; one image twice changes no range.
            filled = pixels
            if isinstance(work.recipe.export.batch, int) and len(pixels) < batch:
                filled = np.resize(pixels, (batch, *pixels.shape[1:]))
            yield {item.part.inputs[0].name: filled}

    return quantize_int8(
        item.model,
        target.quant_scheme(),
        batches,
        work.recipe.int8,
        progress=lambda done: work.progress.step(done, len(calibration)),
        pinned=work.recipe.int8.choices.get(cast("TargetName", name)),
    )


def resolved_recipe(recipe: Recipe, compressed: list[Compressed]) -> Recipe:
    """Return the recipe with every choice that was searched for pinned, by target."""
    choices = {
        cast("TargetName", item.artifact.target): item.quantized.choices
        for item in compressed
        if item.quantized is not None
    }
    int8 = recipe.int8.model_copy(update={"choices": choices})
    return recipe.model_copy(update={"int8": int8})


def _compare(
    work: Work,
    targets: dict[str, Target],
    compressed: list[Compressed],
    reference: dict[str, Outputs],
    images: Chosen,
    writer: BundleWriter,
) -> list[FidelityRow]:
    rows = []
    batch = _batch_of(work.recipe, images)
    for item in compressed:
        artifact = item.artifact
        feeds = (
            {artifact.inputs[0].name: pixels} for pixels, _ in images.evaluation.batches(batch)
        )
        with targets[artifact.target].open(artifact, work.recipe.measure.threads) as runner:
            outputs = collect_outputs(
                runner,
                feeds,
                work.recipe.export.batch,
                progress=lambda done: work.progress.step(done, len(images.evaluation)),
            )
        first = {name: value[:GOLDEN_IMAGES] for name, value in outputs.items()}
        write_golden(writer.folder, f"{artifact.part}.{artifact.target}", {}, first)
        rows += fidelity_rows(
            (artifact.target, artifact.part),
            reference[artifact.part],
            outputs,
            images.labels,
            classes=images.class_output,
            centred=work.recipe.model.random_weights,
        )
    return rows


def _time(
    work: Work,
    targets: dict[str, Target],
    compressed: list[Compressed],
    exported: list[ExportedPart],
    images: Chosen,
) -> list[Measured]:
    measure = work.recipe.measure
    if measure.seconds == 0:
        return []
    fixed = work.recipe.export.batch
    batch = fixed if isinstance(fixed, int) else measure.batch
    pixels = np.resize(images.example, (batch, *images.example.shape[1:]))
    rows = []
    for item in exported:
        feeds = {item.part.inputs[0].name: pixels}
        artifacts = [c.artifact for c in compressed if c.artifact.part == item.part.name]
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


def _write_golden(
    writer: BundleWriter, item: ExportedPart, reference: dict[str, Outputs], images: Chosen
) -> None:
    pixels = images.evaluation.first(GOLDEN_IMAGES)
    outputs = {name: v[: len(pixels)] for name, v in reference[item.part.name].items()}
    write_golden(writer.folder, item.part.name, {item.part.inputs[0].name: pixels}, outputs)


def _remove_reference(writer: BundleWriter) -> None:
    shutil.rmtree(writer.folder / REFERENCE)
