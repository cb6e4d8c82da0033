"""What is kept on a target in other ways of running it, of the same precision, which may be faster.

First how attention is computed (with INT4 weights, in which type), then on which cores: each way is
timed beside what is kept, and taken where it is faster by more than timing errs.
"""

from dataclasses import replace

from vitdeploy.candidates import (
    AS_FAST,
    SAME_SQNR_DB,
    Candidate,
    compressed_with_settings,
    judge,
    sqnr_db,
    time_candidates,
)
from vitdeploy.errors import CompressionError, DataError, ExportError
from vitdeploy.gates import unfaithful_reason
from vitdeploy.job import Job, Judged
from vitdeploy.stages import build_target, record_int4
from vitdeploy.targets import Target, Way


def in_fastest_way(
    job: Job, target: Target, kept: Candidate, judged: Judged
) -> tuple[Candidate, Judged, list[str]]:
    """Return the candidate as it runs fastest, how close that is, and a line on each choice."""
    kept, judged, notes = _computed(job, target, kept, judged)
    kept, note = _scheduled(job, target, kept)
    return kept, judged, [*notes, *([note] if note else [])]


def _computed(
    job: Job, target: Target, kept: Candidate, judged: Judged
) -> tuple[Candidate, Judged, list[str]]:
    ways = () if job.reference.is_slow else target.ways(kept.variant.precision)
    built = [(way, _in_way(job, target, kept, (number, way))) for number, way in enumerate(ways)]
    found = [(way, candidate) for way, candidate in built if candidate is not None]
    if not found:
        return kept, judged, []
    with job.work.stage(f"select {target.NAME}"):
        usual, *others = time_candidates(job, target, [kept, *(item for _, item in found)])
    timed = sorted(zip(found, others, strict=True), key=lambda pair: pair[1].p50_ms)
    notes: list[str] = []
    for (way, _), candidate in timed:
        ratio = usual.p50_ms / candidate.p50_ms
        speed = f"{way.what}: {ratio:.2f}x as fast"
        reason = "" if candidate.p50_ms > AS_FAST * usual.p50_ms else None
        if reason is None:
            try:
                own = judge(job, target, candidate)
            except (DataError, ExportError) as error:
                reason = str(error)
            else:
                reason = _worse_reason(job, target, judged, own)
        if reason is None:
            return _recorded(job, target, candidate), own, [*notes, f"{speed}, and kept."]
        notes.append(f"{speed}, but: {reason}." if reason else f"{speed}.")
    return kept, judged, notes


def _recorded(job: Job, target: Target, kept: Candidate) -> Candidate:
    """Return the candidate with what its INT4 products compute on measured again."""
    compressed = []
    for item, exported in zip(kept.compressed, job.exported, strict=True):
        if item.int4 is None:
            compressed.append(item)
            continue
        # it may be called `mixed`, which does not tell W4A8 from W4A16
        artifact = replace(item.artifact, precision=kept.variant.precision)
        found = record_int4(job, target, exported, artifact, item.int4.model)
        compressed.append(replace(item, activations=found))
    return replace(kept, compressed=compressed)


def _worse_reason(job: Job, target: Target, judged: Judged, own: Judged) -> str | None:
    """Return why another way is not faithful enough; one as close as what is kept always is."""
    if sqnr_db(target, own) >= sqnr_db(target, judged) - SAME_SQNR_DB:
        return None
    return unfaithful_reason(job.work.recipe.gates, own.rows, target.NAME)


def _in_way(
    job: Job, target: Target, kept: Candidate, numbered: tuple[int, Way]
) -> Candidate | None:
    """Return the candidate in another way; None where its graph cannot be written so."""
    number, way = numbered
    settings = {**kept.variant.settings, **way.settings}
    variant = replace(kept.variant, settings=settings, attention=way.form)
    if way.form == "as-exported":
        built = compressed_with_settings(kept.compressed, variant)
        return replace(kept, variant=variant, compressed=built)
    plan = replace(
        kept.plan,
        folder=f"{target.NAME}.attention.{number}",
        attention=way.form,
        quantized={
            item.artifact.part: item.quantized
            for item in kept.compressed
            if item.quantized is not None
        },
    )
    try:
        built = build_target(job, target.NAME, target, plan)
    except (CompressionError, ExportError):
        return None
    same = [
        replace(new, restored=old.restored) for new, old in zip(built, kept.compressed, strict=True)
    ]
    return replace(kept, variant=variant, plan=plan, compressed=same)


def _scheduled(job: Job, target: Target, kept: Candidate) -> tuple[Candidate, str]:
    """Return what is kept, on the kinds of cores on which it is fastest, and a line on them.

    Nothing is tried where the engine knows one way alone, or the recipe says how many threads.
    """
    ways = () if job.work.recipe.measure.threads else target.scheduling()
    if not ways:
        return kept, ""
    found = [kept]
    for settings in ways:
        variant = replace(kept.variant, settings={**kept.variant.settings, **settings})
        found.append(
            replace(
                kept, variant=variant, compressed=compressed_with_settings(kept.compressed, variant)
            )
        )
    with job.work.stage(f"select {target.NAME}"):
        usual, *others = time_candidates(job, target, found)
    best = min(others, key=lambda item: item.p50_ms)
    ratio = usual.p50_ms / best.p50_ms
    if best.p50_ms > AS_FAST * usual.p50_ms:
        return kept, f"no other kind of cores or threads is faster (the best {ratio:.2f}x)."
    return best, f"{best.name} is {ratio:.2f}x faster than on the engine's own choice of threads."
