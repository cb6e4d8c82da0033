"""Outputs of a runner over many images, and how far an artefact's are from the reference's."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vitdeploy.errors import DataError
from vitdeploy.metrics import METRICS, Comparison, Score
from vitdeploy.report import FidelityRow
from vitdeploy.runner import Feeds, Outputs, Runner

_DROPS = (("top1", 1.0), ("agreement", 1.0), ("mask_iou_mean", 100.0), ("cosine_mean", 100.0))
"""By which metric a loss is stated, and how many points 1 of it is."""
NO_REFERENCE_VALUE = "a distance between both models; the reference has no value of its own"


def collect_outputs(
    runner: Runner,
    batches: Iterable[Feeds],
    batch: int | str = "dynamic",
    progress: Callable[[int], None] | None = None,
) -> Outputs:
    """Return every output over all images, concatenated along the batch axis.

    Args:
        runner: what to run.
        batches: feeds by input name, images along axis 0.
        batch: the batch size the runner is fixed to; a short last batch is filled up and the
            surplus dropped.
        progress: called with the number of images done.

    Raises:
        DataError: there are no images.
    """
    collected: dict[str, list[np.ndarray]] = {}
    done = 0
    for feeds in batches:
        count = len(next(iter(feeds.values())))
        if isinstance(batch, int) and count < batch:
            filled = {n: np.resize(v, (batch, *v.shape[1:])) for n, v in feeds.items()}
        else:
            filled = dict(feeds)
        for name, value in runner(filled).items():
            collected.setdefault(name, []).append(np.asarray(value[:count], dtype=np.float32))
        done += count
        if progress:
            progress(done)
    if not done:
        raise DataError("the evaluation set holds no image; give a folder with images to --eval.")
    return {name: np.concatenate(values) for name, values in collected.items()}


def fidelity_rows(
    place: tuple[str, str],
    reference: Outputs,
    value: Outputs,
    labels: np.ndarray | None,
    *,
    classes: str | None = "logits",
    centred: bool = False,
) -> list[FidelityRow]:
    """Return every metric that applies, for each output.

    Args:
        place: (target, part).
        reference: outputs of the FP32 model by name, (N, ...).
        value: outputs of the artefact on the same images.
        labels: (N,) class indices or None.
        classes: the output whose second axis is classes, if there is one.
        centred: see `metrics.Comparison.centred`.

    Raises:
        DataError: an output is missing, has another shape, or is not finite.
    """
    rows = []
    for name, expected in reference.items():
        seen = value.get(name)
        if seen is None or seen.shape != expected.shape:
            shape = None if seen is None else seen.shape
            raise DataError(
                f"output '{name}' on {place[0]}: shape {shape}, the reference has "
                f"{expected.shape}; these are not the same model."
            )
        if not np.isfinite(seen).all():
            raise DataError(
                f"output '{name}' on {place[0]} holds NaN or infinity; the artefact is wrong."
            )
        comparison = Comparison(expected, seen, labels, name == classes, centred)
        for metric, function in METRICS.items():
            score = function(comparison)
            if score is not None:
                rows.append(_row(place, metric, score, name, len(expected)))
    return rows


def find_value(rows: Sequence[FidelityRow], target: str, metric: str) -> FidelityRow | None:
    """Return the worst row of a metric on a target: lowest value, over parts and outputs."""
    found = [row for row in rows if row.target == target and row.metric == metric]
    known = [row for row in found if row.value is not None]
    return min(known, key=lambda row: row.value or 0.0) if known else None


def drop_points(rows: Sequence[FidelityRow], target: str) -> tuple[str, float] | None:
    """Return (metric, points lost): the first of `_DROPS` that was measured."""
    for metric, scale in _DROPS:
        row = find_value(rows, target, metric)
        if row is not None and row.delta is not None:
            return metric, -scale * row.delta
    return None


def _row(place: tuple[str, str], metric: str, score: Score, output: str, count: int) -> FidelityRow:
    missing: Mapping[str, str] = {}
    if score.reference is None:
        missing = {"reference_reason": NO_REFERENCE_VALUE, "delta_reason": NO_REFERENCE_VALUE}
    return FidelityRow(
        target=place[0],
        part=place[1],
        output=output,
        metric=metric,
        reference=score.reference,
        value=score.value,
        delta=score.delta,
        unit=score.unit,
        n=count,
        **missing,
    )
