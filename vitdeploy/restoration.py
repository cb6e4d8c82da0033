"""When INT8 or INT4 is not faithful enough: the noisiest products get more bits until it is.

Which are noisiest was measured by the INT8 search (`compress.placement`); this rebuilds the
artefact with 1, 2, 4, ... of them in float, on the engine that will run it. INT4 weights become
INT8 in the same way. What is faithful enough is said by the caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from vitdeploy.comparing import compare
from vitdeploy.findings import Compressed
from vitdeploy.job import Job, Judged, Plan
from vitdeploy.report import FidelityRow
from vitdeploy.stages import build_target
from vitdeploy.targets import Target

Faithful = Callable[[Sequence[FidelityRow]], bool]


def build_faithful(
    job: Job, target: Target, plan: Plan, is_faithful: Faithful
) -> tuple[list[Compressed], Judged]:
    """Return one target's artefacts, built as planned and restored where need be."""
    built = build_target(job, target.NAME, target, plan)
    with job.work.stage(f"fidelity {target.NAME}"):
        judged = compare(job, target, built)
    if any(item.int4 for item in built):
        return widen(job, target, plan, (built, judged), is_faithful)
    return restore(job, target, plan, (built, judged), is_faithful)


def widen(
    job: Job,
    target: Target,
    plan: Plan,
    found: tuple[list[Compressed], Judged],
    is_faithful: Faithful,
) -> tuple[list[Compressed], Judged]:
    """Return what was found, or where it is not faithful, INT4 weights in fewer products.

    The noisiest for their size go to INT8 first; where all of them do not help, the last artefacts
    are returned.
    """
    built, judged = found
    first = next(item.int4 for item in built if item.int4 is not None)
    # One product must stay, or the precision would be another.
    order = sorted(first.int4, key=lambda name: -first.noise.get(name, 0.0))[:-1]
    count = 1
    while order and not is_faithful(judged.rows):
        widened = tuple(order[:count])
        job.work.progress.note(
            f"{target.NAME}: INT4 loses too much; {len(widened)} product(s) go to INT8."
        )
        kept = (*first.choices.kept_int8, *widened)
        pinned = first.choices.model_copy(update={"kept_int8": kept})
        built = build_target(job, target.NAME, target, replace(plan, pinned_int4=pinned))
        with job.work.stage(f"fidelity {target.NAME}"):
            judged = compare(job, target, built)
        if count >= len(order):
            break
        count *= 2
    return built, judged


def restore(
    job: Job,
    target: Target,
    plan: Plan,
    found: tuple[list[Compressed], Judged],
    is_faithful: Faithful,
    least_int8_percent: float = 0.0,
) -> tuple[list[Compressed], Judged]:
    """Return what was found, or where it is not faithful, INT8 with fewer products.

    Where even that does not help, or where less than `least_int8_percent` of the MACs is left in
    INT8, the last artefacts are returned.
    """
    built, judged = found
    order = _restorable(built)
    count = 1
    while order and not is_faithful(judged.rows):
        restored = order[:count]
        job.work.progress.note(
            f"{target.NAME}: INT8 loses too much; {len(restored)} product(s) go back to float."
        )
        built, judged = _rebuilt(job, target, plan, built, restored)
        shares = [item.quantized.int8_macs_percent for item in built if item.quantized]
        if count >= len(order) or min(shares) < least_int8_percent:
            break
        count *= 2
    return built, judged


def _restorable(built: list[Compressed]) -> list[str]:
    """Return the INT8 products of all parts by the noise they were measured to add."""
    noise = {
        name: value
        for item in built
        if item.quantized is not None
        for name, value in item.quantized.noise.items()
        if name in item.quantized.quantized
    }
    # One product must stay, or there is nothing left to quantise.
    return sorted(noise, key=lambda name: -noise[name])[:-1]


def _rebuilt(
    job: Job, target: Target, plan: Plan, built: list[Compressed], restored: list[str]
) -> tuple[list[Compressed], Judged]:
    """Return the artefacts again, with `restored` in float and all other choices kept."""
    first = next(item.quantized for item in built if item.quantized is not None)
    kept = tuple(dict.fromkeys((*first.choices.kept_float, *restored)))
    pinned = first.choices.model_copy(update={"kept_float": kept})
    again = [
        new
        if new.quantized is None or old.quantized is None
        else replace(
            new,
            restored=tuple(restored),
            quantized=replace(
                new.quantized, noise=old.quantized.noise, search=old.quantized.search
            ),
        )
        for new, old in zip(
            build_target(job, target.NAME, target, replace(plan, pinned=pinned, quantized={})),
            built,
            strict=True,
        )
    ]
    with job.work.stage(f"fidelity {target.NAME}"):
        return again, compare(job, target, again)
