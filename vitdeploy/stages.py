"""The stages of a run, each a plain call: reference, export, parity, build, compare, time.

`pipeline.run` puts them in order. Nothing here knows an architecture, a runtime or how a report
looks.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import onnx_ir as ir

from vitdeploy.activations import ActivationRecord, record_activations
from vitdeploy.allocator import return_freed_memory
from vitdeploy.bundle import Artifact, BundleWriter
from vitdeploy.compress.folding import Memory
from vitdeploy.compress.int4 import Int4Result, quantize_int4
from vitdeploy.compress.int8 import Int8Result, quantize_int8
from vitdeploy.compress.placement import LEAST_INT8_PERCENT
from vitdeploy.findings import REFERENCE, Compressed, Measured
from vitdeploy.graph.attention import recognise_attention
from vitdeploy.graph.attention_form import in_attention_form
from vitdeploy.graph.save import save_model
from vitdeploy.image_sets import Chosen, Source
from vitdeploy.job import ExportedPart, Job, Plan, Work, batch_of
from vitdeploy.joined import is_drawn
from vitdeploy.manifest import sha256_from_file
from vitdeploy.measure import Subject, measure_latency
from vitdeploy.models.spec import ExportPart, LoadedModel
from vitdeploy.onnx_export import (
    Parity,
    check_parity,
    example_feeds,
    forget_weights,
    free_module_,
    onnx_from_part,
    parity_batches,
)
from vitdeploy.recipe import (
    INT4_OPSET,
    INT4_PRECISIONS,
    Int4Choices,
    Int8Choices,
    Recipe,
    TargetName,
)
from vitdeploy.runner import Feeds, Runner
from vitdeploy.targets import BuildRequest, Settings, Target
from vitdeploy.targets.onnx import OrtRunner
from vitdeploy.zero_shot import reads_texts

LEAST_INT4_PERCENT = 50.0
"""Of the weights of products; with less in INT4 an artefact is called `mixed`."""


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
    if recipe.precision in INT4_PRECISIONS:
        opset = max(opset, INT4_OPSET)
    exported = []
    for part in loaded.parts:
        model = onnx_from_part(part, images.example, recipe.export.batch, opset)
        path = writer.add_file(f"{folder}/{part.name}.onnx")
        files = save_model(model, path)
        if len(files) > 1:
            forget_weights(model)
            model = ir.load(path)  # its weights are mapped from the file
        size = sum(file.stat().st_size for file in files)
        exported.append(ExportedPart(part, model, path, sha256_from_file(path), size))
    return exported


def without_modules(exported: list[ExportedPart]) -> list[ExportedPart]:
    """Return the parts without their torch modules, once nothing runs those any more.

    The modules are emptied: nothing can run them afterwards.
    """
    for item in exported:
        free_module_(item.part)
    return_freed_memory()
    return [replace(item, part=replace(item.part, module=None)) for item in exported]


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
        model, quantized, int4, activations = item.model, None, None, None
        kept = "fp32" if keeps_float(item.part) else plan.precision
        settings = plan.settings if kept == plan.precision else {}
        if kept == "int8":
            quantized = plan.quantized.get(item.part.name)
            if quantized is None:
                with job.work.stage(f"quantize {name}"):
                    quantized = quantize(job, target, item, plan.pinned)
                    return_freed_memory()
            model = quantized.model
            kept = "int8" if quantized.int8_macs_percent >= LEAST_INT8_PERCENT else "mixed"
        elif kept in INT4_PRECISIONS:
            pinned = plan.pinned_int4 or job.work.recipe.int4.choices.get(cast("TargetName", name))
            int4 = quantize_weights(job, item, pinned)
            model = int4.model
        if not keeps_float(item.part):
            model = in_attention_form(model, item.model, plan.attention)
        with job.work.stage(f"build {name}"):
            path = job.writer.add_file(f"{plan.folder}/{item.part.name}.onnx")
            probed = job.images.calibration or job.images.evaluation
            request = BuildRequest(
                item.part.name,
                model,
                kept,
                path.parent,
                item.sha256,
                images=None if keeps_float(item.part) else partial(filled_feeds, job, item, probed),
                trt_version=job.work.recipe.export.trt_version,
            )
            artifact = with_settings(target.build(request), settings)
            return_freed_memory()
            if int4 is not None:
                activations = record_int4(job, target, item, artifact, model)
                if int4.int4_weights_percent < LEAST_INT4_PERCENT:
                    artifact = replace(artifact, precision="mixed")
        results.append(Compressed(artifact, quantized, int4=int4, activations=activations))
    return results


def record_int4(
    job: Job, target: Target, item: ExportedPart, artifact: Artifact, model: ir.Model
) -> ActivationRecord:
    """Return what an artefact with INT4 weights, built from `model`, really computes on."""
    probed = job.images.calibration or job.images.evaluation
    return record_activations(target, artifact, model, filled_feeds(job, item, probed))


def keeps_float(part: ExportPart) -> bool:
    """Return whether a part stays in FP32 whatever is asked for, as one that reads prompts does.

    It is a small share of the work (SAM's mask decoder 1 % of a ViT-B encoder's), and where masks
    end follows from small differences: in INT8 the decoder of sam-scenes alone, on the reference's
    embeddings, costs 1.1 points of mask IoU (onnx and openvino; 1.0 on trt), as much as its whole
    encoder does; bf16 moves SAM's logits by 0.6.
    """
    return part.example is not None


def output_notes(job: Job, artifacts: Sequence[Artifact]) -> list[str]:
    """Return a line on each artefact that stays in float, or that lacks outputs of its part."""
    notes = []
    parts = {item.part.name: item.part for item in job.exported}
    for artifact in artifacts:
        if reads_texts(parts[artifact.part]) and job.work.recipe.precision != "fp32":
            notes.append(
                f"{artifact.target}, {artifact.part}: stays in FP32; it runs once a text, not once "
                "a picture."
            )
        elif is_drawn(parts[artifact.part]) and job.work.recipe.precision != "fp32":
            notes.append(
                f"{artifact.target}, {artifact.part}: stays in FP32, for what it remembers wrongly "
                "adds up from frame to frame."
            )
        elif keeps_float(parts[artifact.part]) and job.work.recipe.precision != "fp32":
            notes.append(
                f"{artifact.target}, {artifact.part}: stays in FP32, for it is little of the work "
                "and its masks' edges follow from small differences."
            )
        made = {tensor.name for tensor in artifact.outputs}
        lacking = [f"'{t.name}'" for t in parts[artifact.part].outputs if t.name not in made]
        if lacking:
            notes.append(
                f"{artifact.target}, {artifact.part}: no {', '.join(lacking)}, whose size follows "
                "from an input's values, which this engine cannot plan for; resize low_res_masks "
                "(the predictor and vitdeploy.mask_resizing do)."
            )
    return notes


def recognition_notes(exported: Sequence[ExportedPart]) -> list[str]:
    """Return a line on each part with a softmax over tokens that is not recognised as attention."""
    notes = []
    for item in exported:
        if keeps_float(item.part):
            continue
        ranks = {node.name: len(node.outputs[0].shape or ()) for node in item.model.graph}
        found = recognise_attention(item.model)[1]
        refused = [(name, reason) for name, reason in found if ranks[name] > 2]  # not over classes
        if refused:
            name, reason = refused[0]
            notes.append(
                f"{item.part.name}: {len(refused)} softmax nodes are not recognised as attention, "
                f"such as '{name}' ({reason}); they stay in float, and nothing is folded across "
                "them."
            )
    return notes


def with_settings(artifact: Artifact, settings: Settings) -> Artifact:
    """Return the artefact with session settings on top of its own."""
    return replace(artifact, settings={**artifact.settings, **settings})


def filled_feeds(job: Job, item: ExportedPart, source: Source) -> Iterator[Feeds]:
    """Yield images as feeds of a part, all of full size where its batch is fixed."""
    recipe = job.work.recipe
    batch = batch_of(recipe, job.images)
    if not isinstance(recipe.export.batch, int):
        # two batches at least, so that there is one to be held out of the search
        batch = max(min(batch, len(source) // 2), 1)
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

    def step(done: int) -> None:
        work.progress.step(done, len(calibration))

    return quantize_int8(
        item.model,
        target.quant_scheme(),
        partial(filled_feeds, job, item, calibration),
        work.recipe.int8,
        memory=job.memories.setdefault(item.part.name, Memory(step)),
        pinned=pinned,
    )


def quantize_weights(job: Job, item: ExportedPart, pinned: Int4Choices | None) -> Int4Result:
    """Return a part's graph with INT4 weights; targets share what was chosen alike."""
    work = job.work
    key = (item.part.name, "" if pinned is None else pinned.model_dump_json())
    if key not in job.int4:
        calibration = job.images.require_calibration()
        before = (result.codes for (part, _), result in job.int4.items() if part == key[0])
        with work.stage("quantize int4"):
            job.int4[key] = quantize_int4(
                item.model,
                partial(filled_feeds, job, item, calibration),
                work.recipe.int4,
                progress=lambda done: work.progress.step(done, len(calibration)),
                pinned=pinned,
                known=next((codes for codes in before if codes is not None), None),
            )
    return job.int4[key]


def timing_feeds(recipe: Recipe, images: Chosen, part: ExportPart) -> tuple[Feeds, int]:
    """Return what a part is fed while it is timed, and the batch size; one prompt is one."""
    if part.example is not None:
        return example_feeds(part, images.example, 1), 1
    fixed = recipe.export.batch
    batch = fixed if isinstance(fixed, int) else recipe.measure.batch
    return example_feeds(part, images.example, batch), batch


def time_artifacts(
    work: Work,
    targets: dict[str, Target],
    compressed: list[Compressed],
    exported: list[ExportedPart],
    images: Chosen,
    *,
    apart: bool = False,
) -> list[Measured]:
    """Return the latencies of the FP32 reference and of every artefact that runs here, in turns.

    With `apart` one after the other: engines of a large model do not fit into memory together.
    """
    measure = work.recipe.measure
    if measure.seconds == 0:
        return []
    timed = [c.artifact for c in compressed if targets[c.artifact.target].untimed_reason() is None]
    rows = []
    for item in exported:
        openers = [_Opener(REFERENCE, "fp32", partial(OrtRunner, item.path, measure.threads))]
        openers += [
            _Opener(a.target, a.precision, partial(targets[a.target].open, a, measure.threads))
            for a in timed
            if a.part == item.part.name
        ]
        groups = [[one] for one in openers] if apart else [openers]
        for group in groups:
            seconds = measure.seconds / len(exported) / len(groups)
            rows += _timed_together(work, item.part, group, images, seconds)
    return rows


@dataclass(frozen=True)
class _Opener:
    """A part on one engine, not loaded yet."""

    name: str
    precision: str
    open: Callable[[], Runner]


def _timed_together(
    work: Work, part: ExportPart, openers: Sequence[_Opener], images: Chosen, seconds: float
) -> list[Measured]:
    """Return the latencies of one part on several engines, in turns."""
    feeds, batch = timing_feeds(work.recipe, images, part)
    with ExitStack() as stack:
        runners = [stack.enter_context(one.open()) for one in openers]
        subjects = [
            Subject(one.name, runner, feeds, batch)
            for one, runner in zip(openers, runners, strict=True)
        ]
        timings = measure_latency(subjects, seconds, work.progress.step)
        return [
            Measured(one.name, part.name, r.engine, r.threads, one.precision, timings[one.name])
            for one, r in zip(openers, runners, strict=True)
        ]


def remove_reference(writer: BundleWriter) -> None:
    """Take the FP32 ONNX out of the bundle folder."""
    shutil.rmtree(writer.folder / REFERENCE)
