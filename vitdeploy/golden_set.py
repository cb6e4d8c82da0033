"""What a run keeps of its pictures and outputs: for checks of the bundle and for devices.

How golden tensors are stored is `golden`'s, and the device's files are `device`'s.
"""

import numpy as np

from vitdeploy.bundle import BundleWriter
from vitdeploy.device import PackageCase, cases_from_arrays
from vitdeploy.golden import write_golden
from vitdeploy.job import ExportedPart, Job, Judged
from vitdeploy.joined import (
    asked_from_golden,
    drawn_feeds,
    features_of,
    golden_inputs,
    is_drawn,
    outputs_from_golden,
)
from vitdeploy.runner import Feeds, Outputs
from vitdeploy.zero_shot import reads_texts, text_feeds


def write_golden_of_target(writer: BundleWriter, target: str, judged: Judged) -> None:
    """Write what a target's artefacts gave for the first evaluation images."""
    for part, outputs in judged.golden.items():
        write_golden(writer.folder, f"{part}.{target}", {}, outputs)


def write_golden_of(job: Job, item: ExportedPart) -> None:
    """Write the first evaluation images, or the prompts on them, and the reference outputs."""
    reference = job.reference
    inputs: Feeds
    outputs: Outputs
    if item.part.name not in reference.outputs:
        assert reference.joined is not None
        inputs, outputs = golden_inputs(reference.joined.asked), reference.joined.golden
    elif is_drawn(item.part):
        inputs, outputs = _golden_drawn(job, item)
    else:
        pixels = job.images.evaluation.first(reference.golden_pictures)
        inputs = {item.part.inputs[0].name: pixels}
        outputs = {n: v[: len(pixels)] for n, v in reference.outputs[item.part.name].items()}
    write_golden(job.writer.folder, item.part.name, inputs, outputs)


def _golden_drawn(job: Job, item: ExportedPart) -> tuple[Feeds, Outputs]:
    """Return the first prompts of a text tower, or drawn frames, and what the reference made."""
    count = job.reference.golden_pictures
    outputs = job.reference.outputs[item.part.name]
    if not reads_texts(item.part):
        return drawn_feeds(item.part), outputs
    return text_feeds(item.part, count), {name: value[:count] for name, value in outputs.items()}


def device_cases(job: Job) -> dict[str, tuple[PackageCase, ...]]:
    """Return by part what the device checks itself on: a few images, or one batch of them."""
    return {
        item.part.name: (
            _picture_cases(job, item)
            if item.part.name in job.reference.outputs
            else _prompt_cases(job, item)
        )
        for item in job.exported
    }


def _picture_cases(job: Job, item: ExportedPart) -> tuple[PackageCase, ...]:
    if is_drawn(item.part):
        inputs, outputs = _golden_drawn(job, item)
        if not reads_texts(item.part):
            return (PackageCase(inputs, outputs),)
        return cases_from_arrays(inputs, outputs, 1)
    batch = job.work.recipe.export.batch
    least = batch if isinstance(batch, int) else 1
    pixels = job.images.evaluation.first(max(job.reference.golden_pictures, least))
    outputs = {n: v[: len(pixels)] for n, v in job.reference.outputs[item.part.name].items()}
    size = max(len(pixels), least)  # few images: they repeat
    return cases_from_arrays(
        {item.part.inputs[0].name: np.resize(pixels, (size, *pixels.shape[1:]))},
        {name: np.resize(value, (size, *value.shape[1:])) for name, value in outputs.items()},
        least,
    )


def _prompt_cases(job: Job, item: ExportedPart) -> tuple[PackageCase, ...]:
    """Return the golden prompts with the reference's own embeddings, a picture a case."""
    joined = job.reference.joined
    assert joined is not None
    features = features_of(item.part.inputs, job.reference.outputs)
    asked = asked_from_golden(golden_inputs(joined.asked))
    return tuple(
        PackageCase({**question.feeds, **_picture(features, number)}, outputs)
        for number, (question, outputs) in enumerate(
            zip(asked, outputs_from_golden(joined.golden), strict=True)
        )
    )


def _picture(features: Outputs, number: int) -> Feeds:
    return {name: value[number : number + 1] for name, value in features.items()}
