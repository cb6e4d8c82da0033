"""Trying one candidate: build it, compare it with the model as given, time it."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.advising.candidates import Candidate
from vitdeploy.advising.energy_use import energy_use
from vitdeploy.advising.schema import AdviceRow, Objective, Tried
from vitdeploy.advising.workshop import Workshop
from vitdeploy.bundle import BundleWriter
from vitdeploy.errors import UnsupportedError
from vitdeploy.evaluation import drop_points
from vitdeploy.findings import REFERENCE, Measured
from vitdeploy.image_sets import reject_missing_calibration
from vitdeploy.job import ExportedPart, Job
from vitdeploy.pipeline import resolved_recipe
from vitdeploy.recipe import Recipe, yaml_from_recipe
from vitdeploy.selection import Selection, require_variant, select
from vitdeploy.stages import time_artifacts
from vitdeploy.targets import load_target


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one call, all parts together."""

    own_ms: float | None
    reference_ms: float | None


def recipe_for(candidate: Candidate, base: Recipe) -> Recipe:
    """Return the recipe of a candidate, as `vitdeploy export` would make it.

    Raises:
        UsageError: its precision does not go with the options.
    """
    changes = {"precision": candidate.precision, "targets": (candidate.target,)}
    return Recipe.model_validate({**base.model_dump(mode="json"), **changes})


def require_possible(recipe: Recipe, objective: Objective) -> None:
    """Return where the recipe can be carried out here; looks before any work is done.

    Raises:
        UnsupportedError: the target is not installed, lacks the precision on this machine, or
            cannot be timed here though time is the objective.
        UsageError: calibration images are missing.
        DataError: a path to images does not exist.
    """
    target = load_target(recipe.targets[0])
    require_variant(recipe, target)
    untimed = target.untimed_reason()
    if untimed is not None and objective != "size":
        raise UnsupportedError(f"its {objective} cannot be measured here: {untimed}")
    reject_missing_calibration(recipe)


def attempt(
    candidate: Candidate, recipe: Recipe, workshop: Workshop, objective: Objective
) -> Tried:
    """Return what a candidate turned out to be; its files are deleted again.

    Raises:
        VitdeployError: as building, comparing or timing it.
    """
    start = time.monotonic()
    target = load_target(candidate.target)
    with tempfile.TemporaryDirectory(prefix="candidate-", dir=workshop.folder) as folder:
        # not entered, as no bundle is to appear: it only says where files go
        writer = BundleWriter(Path(folder))
        job = workshop.job(candidate, recipe, writer)
        found = select(job, target)
        whole = workshop.whole(recipe)
        latency = _latency(found, job, whole)
        energy = energy_use(job, found.compressed, whole) if objective == "energy" else None
        size = sum(item.artifact.run_bytes for item in found.compressed)
    lost = drop_points(found.judged.rows, candidate.target)
    kept = {item.artifact.precision for item in found.compressed} - {"fp32"} or {"fp32"}
    row = AdviceRow(
        name=candidate.name,
        variant=candidate.variant,
        precision=candidate.precision,
        target=candidate.target,
        status="done",
        reason=target.untimed_reason() or ("one image shows no loss" if lost is None else None),
        kept_precision="/".join(sorted(kept)),
        drop_points=lost[1] + 0.0 if lost else None,  # no -0
        drop_metric=lost[0] if lost else None,
        latency_ms=latency.own_ms,
        reference_ms=latency.reference_ms,
        size_bytes=size,
        reference_bytes=sum(part.bytes for part in whole),
        energy_mj=energy.own_mj if energy else None,
        reference_mj=energy.reference_mj if energy else None,
        seconds=time.monotonic() - start,
    )
    resolved = resolved_recipe(recipe, {candidate.target: found})
    return Tried(row=row, recipe=yaml_from_recipe(resolved))


def _latency(found: Selection, job: Job, whole: list[ExportedPart]) -> Latency:
    """Return the latencies of a candidate and of the model as given in FP32, timed in turns."""
    recipe = job.work.recipe
    name = recipe.targets[0]
    with job.work.stage("latency"):
        measured = time_artifacts(
            job.work,
            {name: load_target(name)},
            found.compressed,
            whole,
            job.images,
            apart=job.reference.is_slow,
        )
    return Latency(_median_ms(measured, name), _median_ms(measured, REFERENCE))


def _median_ms(measured: Sequence[Measured], name: str) -> float | None:
    medians = [item.timing.p50_ms for item in measured if item.target == name]
    return sum(medians) if medians else None
