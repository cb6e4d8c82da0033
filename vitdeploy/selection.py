"""Which way of running a model on a target is the fastest faithful one, by timing on its engine.

The ways are the target's own `variants`. All are built, timed in turns, and judged from the
fastest on; what was chosen is pinned in the resolved recipe, so that a rerun times nothing. How
INT8 is reached is `compress`'s matter, how it is restored `restoration`'s.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import cast

from vitdeploy.bundle import Artifact
from vitdeploy.comparing import compare
from vitdeploy.compress.placement import LEAST_INT8_PERCENT
from vitdeploy.errors import (
    CompressionError,
    DataError,
    ExportError,
    UnsupportedError,
    UsageError,
    VitdeployError,
)
from vitdeploy.evaluation import find_value
from vitdeploy.findings import Compressed
from vitdeploy.gates import is_within_gate, unfaithful_reason
from vitdeploy.job import Job, Judged, Plan
from vitdeploy.lint.versions import version_from_text
from vitdeploy.measure import Subject, measure_latency
from vitdeploy.recipe import INT4_PRECISIONS, EngineChoice, Recipe, TargetName
from vitdeploy.report import FidelityRow
from vitdeploy.restoration import Faithful, build_faithful, restore
from vitdeploy.stages import (
    build_target,
    keeps_float,
    timing_feeds,
    with_settings,
)
from vitdeploy.targets import HALF_SUFFIX, Target, Variant
from vitdeploy.targets.tensorrt_graphs import require_int4

AS_FAST = 0.98
"""A variant this near to the fastest is as fast: the one listed first, the more exact, is kept."""
WORTH_INT8_PERCENT = 50.0
"""With less of the MACs in INT8 it would hardly be faster than bf16: restoring is given up."""
SAME_SQNR_DB = 3.0
"""Between INT8 variants, whose rounding is the same: more than this is a fault of the engine."""


@dataclass(frozen=True)
class Selection:
    """What was kept on one target."""

    compressed: list[Compressed]
    judged: Judged
    choice: EngineChoice | None = None
    """To be pinned; None where there was nothing to choose."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One variant, built."""

    variant: Variant
    plan: Plan
    compressed: list[Compressed]
    p50_ms: float = 0.0
    """Sum of the parts' median latencies, once timed."""


def require_variant(recipe: Recipe, target: Target) -> None:
    """Return where the target runs what the recipe asks for; looks before any work is done.

    Raises:
        UnsupportedError: it lacks the precision, or `auto` cannot time it here.
        UsageError: `auto` without a budget to time anything.
    """
    pinned = _pinned(recipe, target)
    if recipe.precision != "auto" or pinned is not None:
        target.check_precision(recipe.precision if pinned is None else pinned.precision)
        if recipe.precision in INT4_PRECISIONS and target.IS_PACKAGED:
            require_int4(version_from_text(recipe.export.trt_version))
        return
    if _is_chosen_on_device(target):
        return
    reason = target.untimed_reason()
    if reason is not None:
        raise UnsupportedError(
            f"precision 'auto' chooses by measured time, and target '{target.NAME}' cannot be "
            f"timed here: {reason}. Ask for --int8 or --fp16."
        )
    if recipe.measure.budget_seconds == 0:
        raise UsageError(
            "precision 'auto' chooses by measured time, but measure.search_seconds is 0; give it "
            "some seconds, or ask for one precision."
        )


def select(job: Job, target: Target) -> Selection:
    """Return the artefacts of one target: the only variant asked for, or the best of several.

    Raises:
        VitdeployError: as the building of the only variant, or of the last that could be built.
    """
    recipe = job.work.recipe
    if recipe.precision == "auto" and _is_chosen_on_device(target):
        return _for_device(job, target)
    asked = variants_asked(recipe, target)
    if recipe.precision == "int8" and job.reference.is_slow:
        asked = tuple(variant for variant in asked if variant.precision == "int8")
    if len(asked) == 1:
        plan = _plan(job, target, asked[0], target.NAME)
        built, judged = build_faithful(job, target, plan, _gate(recipe, target))
        return Selection(built, judged, _pinned(recipe, target))
    found, refused = _built(job, target, asked)
    with job.work.stage(f"select {target.NAME}"):
        timed = _timed(job, target, found)
    wanted = [item for item in timed if recipe.precision in ("auto", item.variant.precision)]
    kept, judged, rejected = _first_faithful(job, target, sorted(wanted, key=_rank(wanted)))
    notes = [*refused, *_notes(kept, timed, rejected)]
    for note in notes:
        job.work.progress.note(f"{target.NAME}: {note}")
    choice = EngineChoice.model_validate(
        {"precision": kept.variant.precision, "settings": dict(kept.variant.settings)}
    )
    compressed = _moved(job, target, kept)
    return Selection(compressed, judged, choice, tuple(f"{target.NAME}: {note}" for note in notes))


def variants_asked(recipe: Recipe, target: Target) -> tuple[Variant, ...]:
    """Return the variants to build, in the target's order: one where nothing is to be timed.

    INT8 is timed beside the other short types, so that it can be said where it is slower.
    """
    pinned = _pinned(recipe, target)
    if pinned is not None:
        return (Variant(pinned.precision, pinned.settings),)
    one = (Variant(recipe.precision),)
    if recipe.precision not in ("auto", "int8"):
        return one
    if target.untimed_reason() is not None or recipe.measure.budget_seconds == 0:
        return one
    every = target.variants()
    return every if recipe.precision == "auto" else tuple(v for v in every if v.precision != "fp32")


def _is_chosen_on_device(target: Target) -> bool:
    """Return whether the device itself times the precisions, for nothing can be timed here."""
    return target.IS_PACKAGED and target.untimed_reason() is not None


def _for_device(job: Job, target: Target) -> Selection:
    """Return INT8 with the FP16 graphs beside it; the device keeps the faster faithful one."""
    name = target.NAME
    plan = _plan(job, target, Variant("int8"), name)
    built, judged = build_faithful(job, target, plan, _gate(job.work.recipe, target))
    renamed = [
        replace(item, part=replace(item.part, name=f"{item.part.name}{HALF_SUFFIX}"))
        for item in job.exported
        if not keeps_float(item.part)
    ]
    half = build_target(replace(job, exported=renamed), name, target, Plan("fp16", name))
    others = {item.artifact.part.removesuffix(HALF_SUFFIX): item.artifact for item in half}
    both = [
        replace(item, artifact=_joined(item.artifact, others[item.artifact.part]))
        if item.artifact.part in others
        else item
        for item in built
    ]
    note = f"{name}: holds INT8 and FP16; the device builds both and keeps the faster faithful one."
    return Selection(both, judged, notes=(note,))


def _joined(artifact: Artifact, other: Artifact) -> Artifact:
    """Return `artifact` with the other's files too."""
    files = (*artifact.files, *other.files)
    return replace(artifact, files=files, bytes=artifact.bytes + other.bytes)


def _pinned(recipe: Recipe, target: Target) -> EngineChoice | None:
    return recipe.choices.get(cast("TargetName", target.NAME))


def _plan(job: Job, target: Target, variant: Variant, folder: str) -> Plan:
    pins = job.work.recipe.int8.choices.get(cast("TargetName", target.NAME))
    return Plan(variant.precision, folder, variant.settings, pins)


def _gate(recipe: Recipe, target: Target) -> Faithful:
    return lambda rows: is_within_gate(recipe.gates, rows, target.NAME)


def _built(
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
        plan = _plan(job, target, variant, f"{target.NAME}.{name}")
        is_first = name not in made
        if is_first and name not in refused:
            try:
                made[name] = build_target(job, target.NAME, target, plan)
            except (CompressionError, ExportError) as error:
                refused[name] = error
        if name in made:
            found.append(Candidate(variant, plan, _with_settings(made[name], variant)))
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
            _plan(job, target, variant, f"{target.NAME}.int8.{number}"),
            quantized={own.artifact.part: quantized},
        )
        try:
            again = build_target(job, target.NAME, target, plan)
        except ExportError:
            continue
        found.append(Candidate(replace(variant, placement=what), plan, again))
    return found


def _with_settings(compressed: list[Compressed], variant: Variant) -> list[Compressed]:
    """Return the artefacts with a variant's settings; what stays float has its own."""
    return [
        replace(item, artifact=with_settings(item.artifact, variant.settings))
        if item.artifact.precision != "fp32" or variant.precision == "fp32"
        else item
        for item in compressed
    ]


def _timed(job: Job, target: Target, candidates: Sequence[Candidate]) -> list[Candidate]:
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


def _rank(candidates: Sequence[Candidate]) -> Callable[[Candidate], tuple[float, int]]:
    """Return the order of judging: by time, those as fast as the fastest in their own order."""
    fastest = min(item.p50_ms for item in candidates)
    order = {id(item): number for number, item in enumerate(candidates)}

    def rank(item: Candidate) -> tuple[float, int]:
        return max(item.p50_ms * AS_FAST, fastest), order[id(item)]

    return rank


def _first_faithful(
    job: Job, target: Target, ranked: Sequence[Candidate]
) -> tuple[Candidate, Judged, dict[str, str]]:
    """Return the fastest faithful candidate, and why the faster ones were not kept.

    For `auto` the INT8 candidate that is not faithful is tried again with its noisiest products
    in float, and kept if it is still faster than the next one. Where none is faithful, the least
    wrong one is kept: for `auto` the one listed first, and a gate, where there is one, fails.
    """
    gates, is_auto = job.work.recipe.gates, job.work.recipe.precision == "auto"
    judged: list[tuple[Candidate, Judged]] = []
    rejected: dict[str, str] = {}
    for position, candidate in enumerate(ranked):
        try:
            found = _judge(job, target, candidate)
        except DataError as error:
            rejected[_name(candidate)] = str(error)
            continue
        reason = unfaithful_reason(gates, found.rows, target.NAME)
        if reason is None:
            return candidate, found, rejected
        rejected[_name(candidate)] = reason
        judged.append((candidate, found))
        if is_auto and candidate.variant.precision == "int8" and len(judged) == 1:
            mixed = _restored(job, target, (candidate, found), ranked[position + 1 :])
            if mixed is not None:
                return *mixed, rejected
    if not judged:
        raise DataError(
            f"no way of running the model on {target.NAME} gives finite outputs: "
            + "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
        )
    best = max(_sqnr_db(target, found) for _, found in judged)
    near = [pair for pair in judged if _sqnr_db(target, pair[1]) >= best - SAME_SQNR_DB]
    kept, found = near[0]
    if not is_auto:
        gate = _gate(job.work.recipe, target)
        found_pair = (kept.compressed, found)
        built, found = restore(job, target, kept.plan, found_pair, gate)
        kept = replace(kept, compressed=built)
    return kept, found, rejected


def _restored(
    job: Job, target: Target, found: tuple[Candidate, Judged], others: Sequence[Candidate]
) -> tuple[Candidate, Judged] | None:
    """Return INT8 with products in float, where that is faithful and no slower than the next."""
    candidate, judged = found
    gates = job.work.recipe.gates
    plan = replace(candidate.plan, folder=f"{target.NAME}.mixed")

    def is_faithful(rows: Sequence[FidelityRow]) -> bool:
        return unfaithful_reason(gates, rows, target.NAME) is None

    built, again = restore(
        job, target, plan, (candidate.compressed, judged), is_faithful, WORTH_INT8_PERCENT
    )
    if not is_faithful(again.rows):
        return None
    mixed = replace(candidate, plan=plan, compressed=built)
    next_best = [item for item in others if item.variant.precision != "int8"][:1]
    with job.work.stage(f"select {target.NAME}"):
        mixed, *rivals = _timed(job, target, [mixed, *next_best])
    return None if any(rival.p50_ms < mixed.p50_ms for rival in rivals) else (mixed, again)


def _judge(job: Job, target: Target, candidate: Candidate) -> Judged:
    with job.work.stage(f"fidelity {target.NAME}"):
        return compare(job, target, candidate.compressed)


def _sqnr_db(target: Target, judged: Judged) -> float:
    row = find_value(judged.rows, target.NAME, "sqnr_db")
    return row.value if row is not None and row.value is not None else 0.0


def _name(candidate: Candidate) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in candidate.variant.settings.items())
    name = candidate.variant.precision.upper()
    if candidate.variant.placement:
        name = f"{name} with {candidate.variant.placement}"
    return f"{name} ({settings})" if settings else name


def _notes(
    kept: Candidate, timed: Sequence[Candidate], rejected: Mapping[str, str]
) -> Iterator[str]:
    """Yield what was measured, for people: one line for what was kept, one for each other."""
    yield f"kept {_name(kept)}: {kept.p50_ms:.3g} ms, the median of the candidates' timing."
    for other in timed:
        if other.variant == kept.variant:
            continue
        ratio = other.p50_ms / kept.p50_ms
        speed = f"{ratio:.2f}x slower" if ratio >= 1 else f"{1 / ratio:.2f}x faster"
        reason = rejected.get(_name(other)) if ratio < 1 else None
        yield f"{_name(other)} is {speed} here" + (f", but: {reason}." if reason else ".")


def _moved(job: Job, target: Target, kept: Candidate) -> list[Compressed]:
    """Return the artefacts of `kept` at their final place; the other candidates are deleted."""
    root = job.writer.folder
    source, final = root / kept.plan.folder, root / target.NAME
    source.rename(final)
    for folder in root.glob(f"{target.NAME}.*"):
        shutil.rmtree(folder)
    moved = []
    for item in kept.compressed:
        old = item.artifact
        paths = {path: final / path.relative_to(source.absolute()) for path in old.files}
        new = replace(old, path=paths[old.path], files=tuple(paths[path] for path in old.files))
        moved.append(replace(item, artifact=new))
    return moved
