"""Where an INT8 artefact's error comes from, as its report tells: noisy blocks, outlier channels.

The figures are the quantiser's own and those of `diagnosis`, which looks closer.
"""

from collections.abc import Sequence

import numpy as np

from vitdeploy.errors import VitdeployError
from vitdeploy.findings import Compressed
from vitdeploy.job import Job
from vitdeploy.report import BlockNoise, OutlierRow

_MOST_BYTES = 500_000_000
"""Of a FP32 graph; both graphs in one, with probes, take several times that."""


def block_noise(compressed: Sequence[Compressed]) -> tuple[BlockNoise, ...]:
    """Return by target, part and block the error of products alone in INT8, where measured."""
    from vitdeploy.diagnosis.pairing import block_of  # which imports this package's pipeline

    rows = []
    for item in compressed:
        noise = item.quantized.noise if item.quantized else {}
        blocks: dict[str, list[float]] = {}
        for site, value in noise.items():
            blocks.setdefault(block_of(site) or "other", []).append(value)
        rows += [
            BlockNoise(
                target=item.artifact.target,
                part=item.artifact.part,
                block=block,
                noise=sum(values),
                products=len(values),
            )
            for block, values in blocks.items()
        ]
    return tuple(rows)


def outlier_rows(job: Job, compressed: Sequence[Compressed]) -> tuple[OutlierRow, ...]:
    """Return the outlier ratios of LayerNorms before and after the folds, on a few images.

    Nothing for models that are slow or large, for which `diagnose` takes its time.
    """
    from vitdeploy.diagnosis.extremes import measure_extremes
    from vitdeploy.diagnosis.pairing import in_form_of, pair_models

    exported = {part.part.name: part for part in job.exported}
    rows: list[OutlierRow] = []
    for item in compressed:
        found, part = item.quantized, exported[item.artifact.part]
        if found is None or job.reference.is_slow or part.bytes > _MOST_BYTES:
            continue
        if job.reference.joined is not None and len(part.part.inputs) > 1:
            continue  # a decoder, which reads no picture
        pixels = job.images.example
        fixed = part.part.inputs[0].shape[0]
        count = fixed if isinstance(fixed, int) else len(pixels)
        feeds = {part.part.inputs[0].name: np.resize(pixels, (count, *pixels.shape[1:]))}
        try:
            original = in_form_of(found.model, part.model)
            extremes = measure_extremes(pair_models(original, found.model), lambda: [feeds])  # noqa: B023
        except VitdeployError:
            continue  # a graph that cannot be compared; it was judged by its outputs
        rows += [
            OutlierRow(
                target=item.artifact.target,
                part=item.artifact.part,
                norm=norm.name,
                before=norm.before,
                after=norm.after,
                after_reason=norm.after_reason,
            )
            for norm in extremes.norms
        ]
    return tuple(rows)
