"""Which way of running a model on a target is the fastest faithful one, by timing on its engine.

`candidates` builds and times them; here they are judged, from the fastest on. What was chosen is
pinned in the resolved recipe, so that a rerun times nothing. How INT8 is reached is `compress`'s
matter, how it is restored `restoration`'s.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vitdeploy.bundle import Artifact
from vitdeploy.candidates import (
    AS_FAST,
    SAME_SQNR_DB,
    Candidate,
    build_candidates,
    judge,
    pinned_choice,
    plan_of,
    sqnr_db,
    time_candidates,
)
from vitdeploy.errors import DataError, ExportError, UnsupportedError, UsageError
from vitdeploy.findings import Compressed
from vitdeploy.gates import is_within_gate, unfaithful_reason
from vitdeploy.job import Job, Judged, Plan, note_all
from vitdeploy.lint.versions import version_from_text
from vitdeploy.recipe import INT4_PRECISIONS, EngineChoice, Recipe
from vitdeploy.report import FidelityRow
from vitdeploy.restoration import Faithful, build_faithful, restore
from vitdeploy.stages import build_target, keeps_float
from vitdeploy.targets import HALF_SUFFIX, Target, Variant
from vitdeploy.targets.tensorrt_graphs import require_int4
from vitdeploy.ways import in_fastest_way

WORTH_INT8_PERCENT = 50.0
"""With less of the MACs in INT8 it would hardly be faster than bf16: restoring is given up."""


@dataclass(frozen=True)
class Selection:
    """What was kept on one target."""

    compressed: list[Compressed]
    judged: Judged
    choice: EngineChoice | None = None
    """To be pinned; None where there was nothing to choose."""
    notes: tuple[str, ...] = ()


def require_variant(recipe: Recipe, target: Target) -> None:
    """Return where the target runs what the recipe asks for; looks before any work is done.

    Raises:
        UnsupportedError: it lacks the precision, or `auto` cannot time it here.
        UsageError: `auto` without a budget to time anything.
    """
    pinned = pinned_choice(recipe, target)
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
    if len(asked) == 1 and (job.reference.is_slow or not _is_timed(recipe, target)):
        return _only(job, target, asked[0])
    found, refused = build_candidates(job, target, asked)
    timed = found
    if len(found) > 1:
        with job.work.stage(f"select {target.NAME}"):
            timed = time_candidates(job, target, found)
    wanted = [item for item in timed if recipe.precision in ("auto", item.variant.precision)]
    kept, judged, rejected = _first_faithful(job, target, sorted(wanted, key=_rank(wanted)))
    notes = [*refused, *(_notes(kept, timed, rejected) if len(timed) > 1 else ())]
    kept, judged, others = in_fastest_way(job, target, kept, judged)
    moved = replace(kept, compressed=_moved(job, target, kept))
    return _selection(job, target, moved, judged, [*notes, *others])


def _only(job: Job, target: Target, variant: Variant) -> Selection:
    """Return the only variant asked for; with INT4 weights, in the type that is fastest."""
    recipe, pinned = job.work.recipe, pinned_choice(job.work.recipe, target)
    plan = plan_of(job, target, variant, target.NAME)
    built, judged = build_faithful(job, target, plan, _gate(recipe, target))
    if (
        recipe.precision not in INT4_PRECISIONS
        or pinned is not None
        or not _can_time(recipe, target)
    ):
        return Selection(built, judged, pinned)
    kept, judged, notes = in_fastest_way(job, target, Candidate(variant, plan, built), judged)
    return _selection(job, target, kept, judged, notes) if notes else Selection(built, judged)


def _selection(
    job: Job, target: Target, kept: Candidate, judged: Judged, notes: Sequence[str]
) -> Selection:
    """Return what is kept, to be pinned, and tell the user why."""
    told = tuple(f"{target.NAME}: {note}" for note in notes)
    note_all(job.work, told)
    choice = EngineChoice.model_validate(
        {
            "precision": kept.variant.precision,
            "settings": dict(kept.variant.settings),
            "attention": kept.variant.attention,
        }
    )
    return Selection(kept.compressed, judged, choice, told)


def variants_asked(recipe: Recipe, target: Target) -> tuple[Variant, ...]:
    """Return the variants to build, in the target's order: one where nothing is to be timed.

    INT8 is timed beside the other short types, so that it can be said where it is slower.
    """
    pinned = pinned_choice(recipe, target)
    if pinned is not None:
        return (Variant(pinned.precision, pinned.settings, attention=pinned.attention),)
    if not _is_timed(recipe, target):
        return (Variant(recipe.precision),)
    every = target.variants()
    return every if recipe.precision == "auto" else tuple(v for v in every if v.precision != "fp32")


def _is_timed(recipe: Recipe, target: Target) -> bool:
    """Return whether ways of running the model are to be timed here, and can be."""
    if recipe.precision not in ("auto", "int8") or pinned_choice(recipe, target) is not None:
        return False
    return _can_time(recipe, target)


def _can_time(recipe: Recipe, target: Target) -> bool:
    return target.untimed_reason() is None and recipe.measure.budget_seconds > 0


def _is_chosen_on_device(target: Target) -> bool:
    """Return whether the device itself times the precisions, for nothing can be timed here."""
    return target.IS_PACKAGED and target.untimed_reason() is not None


def _for_device(job: Job, target: Target) -> Selection:
    """Return INT8 with the FP16 graphs beside it; the device keeps the faster faithful one."""
    name = target.NAME
    plan = plan_of(job, target, Variant("int8"), name)
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


def _gate(recipe: Recipe, target: Target) -> Faithful:
    return lambda rows: is_within_gate(recipe.gates, rows, target.NAME)


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
    failure: DataError | ExportError | None = None
    for position, candidate in enumerate(ranked):
        try:
            found = judge(job, target, candidate)
        except (DataError, ExportError) as error:
            rejected[candidate.name], failure = str(error), error
            continue
        reason = unfaithful_reason(gates, found.rows, target.NAME)
        if reason is None:
            return candidate, found, rejected
        rejected[candidate.name] = reason
        judged.append((candidate, found))
        if is_auto and candidate.variant.precision == "int8" and len(judged) == 1:
            mixed = _restored(job, target, (candidate, found), ranked[position + 1 :])
            if mixed is not None:
                return *mixed, rejected
    if failure is not None and not judged:
        raise type(failure)(
            f"no way of running the model on {target.NAME} gives the outputs of its graph: "
            + "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
        )
    best = max(sqnr_db(target, found) for _, found in judged)
    near = [pair for pair in judged if sqnr_db(target, pair[1]) >= best - SAME_SQNR_DB]
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

    try:
        built, again = restore(
            job, target, plan, (candidate.compressed, judged), is_faithful, WORTH_INT8_PERCENT
        )
    except ExportError:  # the engine does not run that graph, or not as it says
        return None
    if not is_faithful(again.rows):
        return None
    mixed = replace(candidate, plan=plan, compressed=built)
    next_best = [item for item in others if item.variant.precision != "int8"][:1]
    with job.work.stage(f"select {target.NAME}"):
        mixed, *rivals = time_candidates(job, target, [mixed, *next_best])
    return None if any(rival.p50_ms < mixed.p50_ms for rival in rivals) else (mixed, again)


def _notes(
    kept: Candidate, timed: Sequence[Candidate], rejected: Mapping[str, str]
) -> Iterator[str]:
    """Yield what was measured, for people: one line for what was kept, one for each other."""
    yield f"kept {kept.name}: {kept.p50_ms:.3g} ms, the median of the candidates' timing."
    for other in timed:
        if other.variant == kept.variant:
            continue
        ratio = other.p50_ms / kept.p50_ms
        speed = f"{ratio:.2f}x slower" if ratio >= 1 else f"{1 / ratio:.2f}x faster"
        reason = rejected.get(other.name) if ratio < 1 else None
        yield f"{other.name} is {speed} here" + (f", but: {reason}." if reason else ".")


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
