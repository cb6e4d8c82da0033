"""The ways of running a model on a target: built, INT8 in its further placements too, and timed."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import cast

from vitdeploy.comparing import compare
from vitdeploy.compress.placement import LEAST_INT8_PERCENT
from vitdeploy.errors import CompressionError, ExportError, VitdeployError
from vitdeploy.evaluation import find_value
from vitdeploy.findings import Compressed
from vitdeploy.job import Job, Judged, Plan
from vitdeploy.measure import Subject, measure_latency
from vitdeploy.recipe import EngineChoice, Recipe, TargetName
from vitdeploy.stages import build_target, keeps_float, timing_feeds, with_settings
from vitdeploy.targets import Target, Variant

AS_FAST = 0.98
"""One this near to the fastest is as fast: the one listed first, the more exact, is kept."""
SAME_SQNR_DB = 3.0
"""Between INT8 candidates, whose rounding is the same: more than this is a fault of the engine."""


@dataclass(frozen=True)
class Candidate:
    """One variant, built."""

    variant: Variant
    plan: Plan
    compressed: list[Compressed]
    p50_ms: float = 0.0
    """Sum of the parts' median latencies, once timed."""

    @property
    def name(self) -> str:
        """For people."""
        settings = ", ".join(f"{key}={value}" for key, value in self.variant.settings.items())
        name = self.variant.precision.upper()
        if self.variant.placement:
            name = f"{name} with {self.variant.placement}"
        return f"{name} ({settings})" if settings else name


def pinned_choice(recipe: Recipe, target: Target) -> EngineChoice | None:
    """Return what an earlier run chose for the target; None where nothing is pinned."""
    return recipe.choices.get(cast("TargetName", target.NAME))


def plan_of(job: Job, target: Target, variant: Variant, folder: str) -> Plan:
    """Return how to build a variant into `folder`, a name in the bundle, INT8 as it is pinned."""
    pins = job.work.recipe.int8.choices.get(cast("TargetName", target.NAME))
    return Plan(variant.precision, folder, variant.settings, pins, attention=variant.attention)


def build_candidates(
    job: Job, target: Target, variants: Sequence[Variant]
) -> tuple[list[Candidate], list[str]]:
    """Return the candidates, and a line on each precision that could not be built.

    Variants of one precision share their files and differ in settings.
    """
    made: dict[str, list[Compressed]] = {}
    refused: dict[str, VitdeployError] = {}
    found = []
    for variant in variants:
        name = variant.precision
        plan = plan_of(job, target, variant, f"{target.NAME}.{name}")
        is_first = name not in made
        if is_first and name not in refused:
            try:
                made[name] = build_target(job, target.NAME, target, plan)
            except (CompressionError, ExportError) as error:
                refused[name] = error
        if name in made:
            found.append(Candidate(variant, plan, compressed_with_settings(made[name], variant)))
            if is_first:
                found += _other_placements(job, target, (variant, made[name]))
    if not any(job.work.recipe.precision in ("auto", item.variant.precision) for item in found):
        raise next(reversed(refused.values()))
    return found, [f"{name} cannot be built: {error}" for name, error in refused.items()]


def _other_placements(
    job: Job, target: Target, usual: tuple[Variant, list[Compressed]]
) -> list[Candidate]:
    """Return a variant of INT8, which is built, with more in float, which may be faster.

    None of it where less than the least share of INT8 would be left, which a run for INT8 promises.
    """
    variant, built = usual
    parts = [item for item in built if item.quantized is not None]
    if len(parts) != 1 or job.reference.is_slow:
        return []
    (own,) = parts
    assert own.quantized is not None
    found = []
    for number, (what, quantized) in enumerate(own.quantized.others):
        if quantized.int8_macs_percent < LEAST_INT8_PERCENT:
            continue
        plan = replace(
            plan_of(job, target, variant, f"{target.NAME}.int8.{number}"),
            quantized={own.artifact.part: quantized},
        )
        try:
            again = build_target(job, target.NAME, target, plan)
        except ExportError:
            continue
        found.append(Candidate(replace(variant, placement=what), plan, again))
    return found


def compressed_with_settings(compressed: list[Compressed], variant: Variant) -> list[Compressed]:
    """Return the artefacts with a variant's settings; what stays float has its own."""
    return [
        replace(item, artifact=with_settings(item.artifact, variant.settings))
        if item.artifact.precision != "fp32" or variant.precision == "fp32"
        else item
        for item in compressed
    ]


def time_candidates(job: Job, target: Target, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with their latencies, all measured in turns."""
    recipe, totals = job.work.recipe, [0.0] * len(candidates)
    compared = [(n, i) for n, i in enumerate(job.exported) if not keeps_float(i.part)]
    seconds = recipe.measure.budget_seconds / len(compared)
    for index, item in compared:
        feeds, batch = timing_feeds(recipe, job.images, item.part)
        with ExitStack() as stack:
            subjects = []
            for number, candidate in enumerate(candidates):
                artifact = candidate.compressed[index].artifact
                runner = stack.enter_context(target.open(artifact, recipe.measure.threads))
                subjects.append(Subject(str(number), runner, feeds, batch))
            timings = measure_latency(subjects, seconds, job.work.progress.step)
        totals = [total + timings[str(number)].p50_ms for number, total in enumerate(totals)]
    return [replace(c, p50_ms=ms) for c, ms in zip(candidates, totals, strict=True)]


def judge(job: Job, target: Target, candidate: Candidate) -> Judged:
    """Return how close a candidate is to the reference, on its engine.

    Raises:
        DataError: its outputs are not finite.
        ExportError: they are not those of its graph.
    """
    with job.work.stage(f"fidelity {target.NAME}"):
        return compare(job, target, candidate.compressed)


def sqnr_db(target: Target, judged: Judged) -> float:
    """Return the SQNR that was found; 0 where there is none."""
    row = find_value(judged.rows, target.NAME, "sqnr_db")
    return row.value if row is not None and row.value is not None else 0.0
