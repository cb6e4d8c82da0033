"""What the model as loaded gives for the evaluation images, and how close artefacts come to it.

Metrics are `evaluation`'s, masks `mask_fidelity`'s; here models are run for them.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

from vitdeploy.bundle import Artifact
from vitdeploy.evaluation import collect_outputs, fidelity_rows
from vitdeploy.findings import Compressed
from vitdeploy.image_sets import Chosen
from vitdeploy.job import Job, Judged, Reference, Work, batch_of
from vitdeploy.joined import (
    GOLDEN_PICTURES,
    JoinedReference,
    asked_of,
    decoded,
    drawn_feeds,
    features_of,
    follows,
    golden_outputs,
    is_drawn,
    reference_of,
)
from vitdeploy.mask_fidelity import judge
from vitdeploy.models.spec import ExportPart, LoadedModel
from vitdeploy.onnx_export import reference_runner
from vitdeploy.own_graph import IMAGES, Seen, require_own_graph
from vitdeploy.report import FidelityRow, WorstImage
from vitdeploy.runner import Feeds, Outputs, Runner
from vitdeploy.targets import Target
from vitdeploy.targets.onnx import OrtRunner
from vitdeploy.worst_images import Answers, worst_answers, worst_masks
from vitdeploy.zero_shot import zero_shot_rows


def evaluation_feeds(images: Chosen, part: ExportPart, batch: int) -> Iterator[Feeds]:
    """Yield the evaluation images as feeds of `part`."""
    for pixels, _ in images.evaluation.batches(batch):
        yield {part.inputs[0].name: pixels}


def reference_outputs(work: Work, loaded: LoadedModel, images: Chosen) -> Reference:
    """Return what the model as loaded gives for all evaluation images."""
    outputs: dict[str, Outputs] = {}
    batch = batch_of(work.recipe, images)
    start = time.perf_counter()
    joined = None
    for part in loaded.parts:
        with reference_runner(part) as runner:
            if follows(part.inputs, outputs):
                joined = _joined_reference(runner, part, outputs, images)
                continue
            if is_drawn(part):
                outputs[part.name] = runner(drawn_feeds(part))
                continue
            outputs[part.name] = collect_outputs(
                runner,
                evaluation_feeds(images, part, batch),
                work.recipe.export.batch,
                progress=lambda done: work.progress.step(done, len(images.evaluation)),
            )
    seconds = time.perf_counter() - start
    return Reference(outputs, joined, seconds / max(len(images.evaluation), 1))


def _joined_reference(
    runner: Runner, part: ExportPart, outputs: dict[str, Outputs], images: Chosen
) -> JoinedReference:
    """Return what the part that reads prompts makes of every evaluation image."""
    preprocess = images.preprocess
    rows, columns = next(t.shape[2:] for t in part.inputs if t.name == "mask_input")
    asked = tuple(
        asked_of(images.evaluation.images, index, preprocess, (int(rows), int(columns)))
        for index in images.evaluation.readable
    )
    features = features_of(part.inputs, outputs)
    return reference_of(decoded(runner, features, asked), asked, preprocess)


def compare(job: Job, target: Target, compressed: list[Compressed]) -> Judged:
    """Return the fidelity of a target's artefacts on their own engine.

    Raises:
        DataError: an output is not finite, or of another shape.
        ExportError: an engine does not compute what the artefact's own graph says.
    """
    rows: list[FidelityRow] = []
    made: dict[str, Outputs] = {}
    golden: dict[str, Outputs] = {}
    worst: list[WorstImage] = []
    images, joined = job.images, job.reference.joined
    drawn = {item.part.name: item.part for item in job.exported if is_drawn(item.part)}
    for item in compressed:
        artifact = item.artifact
        part = drawn.get(artifact.part)
        with target.open(artifact, job.work.recipe.measure.threads) as runner:
            engine = runner.engine
            if joined is not None and follows(artifact.inputs, made):
                own = decoded(runner, features_of(artifact.inputs, made), joined.asked)
                masks = judge(artifact.target, joined, own, images.preprocess)
                golden[artifact.part] = masks.golden
                rows += masks.rows
                worst = worst_masks(artifact.target, images, masks.worst)
                if not _is_smaller(job):
                    require_own_graph(target, item, _seen_prompted(job, artifact, runner), engine)
                continue
            first = None if part is None else drawn_feeds(part)
            outputs = (
                _outputs_for_pictures(job, artifact, runner) if first is None else runner(first)
            )
        made[artifact.part] = outputs
        count = job.reference.golden_pictures
        golden[artifact.part] = {name: v[:count] for name, v in outputs.items()}
        # what one video remembers has nothing to be centred over
        centred = job.work.recipe.model.random_weights and (joined is None or part is None)
        rows += fidelity_rows(
            (artifact.target, artifact.part),
            job.reference.outputs[artifact.part],
            outputs,
            images.labels,
            classes=images.class_output,
            centred=centred,
        )
        seen = _seen(job, artifact.part, first or _first_pictures(job, artifact), outputs)
        require_own_graph(target, item, replace(seen, centred=centred), engine)
        if joined is None and part is None:
            worst += _worst_of(job, artifact, outputs)
    rows += zero_shot_rows(compressed[0].artifact.target, job.reference.outputs, made)
    return Judged(rows, golden, worst)


def _first_pictures(job: Job, artifact: Artifact) -> Feeds:
    """Return the first evaluation images as feeds."""
    batch = min(batch_of(job.work.recipe, job.images), IMAGES)
    return {artifact.inputs[0].name: job.images.evaluation.first(batch)}


def _seen(job: Job, part: str, feeds: Feeds, outputs: Outputs) -> Seen:
    """Return what the exported model and an artefact of `part` gave for the first pictures."""
    recipe, count = job.work.recipe, len(next(iter(feeds.values())))
    expected = job.reference.outputs[part]
    if _is_smaller(job):  # the reference is another function then
        path = next(item.path for item in job.exported if item.part.name == part)
        with OrtRunner(path) as runner:
            expected = collect_outputs(runner, [feeds], recipe.export.batch)
    return Seen(
        feeds,
        {name: value[:count] for name, value in expected.items()},
        {name: value[:count] for name, value in outputs.items()},
        recipe.export.batch,
        recipe.measure.threads,
    )


def _is_smaller(job: Job) -> bool:
    """Return whether what is exported is not the model as it was loaded."""
    recipe = job.work.recipe
    return any((recipe.prune, recipe.distill, recipe.merge_tokens))


def _seen_prompted(job: Job, artifact: Artifact, runner: Runner) -> Seen:
    """Return what a part that reads prompts gives for the reference's own features."""
    joined = job.reference.joined
    assert joined is not None
    features = features_of(artifact.inputs, job.reference.outputs)
    again = list(decoded(runner, features, joined.asked[:GOLDEN_PICTURES]))
    return Seen({}, joined.golden, golden_outputs(again), job.work.recipe.export.batch)


def _worst_of(job: Job, artifact: Artifact, outputs: Outputs) -> list[WorstImage]:
    """Return the images on which the telling output of a part differs most."""
    reference = job.reference.outputs[artifact.part]
    classes = job.images.class_output
    name = classes if classes in reference else next(iter(reference))
    answers = Answers(reference[name], outputs[name], are_logits=name == classes)
    return worst_answers(artifact.target, job.images, answers)


def _outputs_for_pictures(job: Job, artifact: Artifact, runner: Runner) -> Outputs:
    """Return what an artefact that reads pictures gives for all evaluation images."""
    work, images = job.work, job.images
    batch = batch_of(work.recipe, images)
    name = artifact.inputs[0].name
    return collect_outputs(
        runner,
        ({name: pixels} for pixels, _ in images.evaluation.batches(batch)),
        work.recipe.export.batch,
        progress=lambda done: work.progress.step(done, len(images.evaluation)),
    )
