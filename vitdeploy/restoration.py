"""When INT8 misses the gate on fidelity: the noisiest products go back to float until it holds.

Which are noisiest was measured by the INT8 search (`compress.placement`); this rebuilds the
artefact with 1, 2, 4, ... of them in float, on the engine that will run it.
"""

from dataclasses import replace
from typing import cast

from vitdeploy.documents import Compressed
from vitdeploy.evaluation import drop_points
from vitdeploy.recipe import TargetName
from vitdeploy.report import FidelityRow
from vitdeploy.stages import Job, build_target, compare
from vitdeploy.targets import Target


def build_within_gate(
    job: Job, name: str, target: Target
) -> tuple[list[Compressed], list[FidelityRow]]:
    """Return one target's artefacts and their fidelity.

    Where `max_drop_points` is missed in INT8, products are restored to float; where even that
    does not help, the last artefact is returned and the gate will say so.
    """
    pinned = job.work.recipe.int8.choices.get(cast("TargetName", name))
    built = build_target(job, name, target, pinned)
    with job.work.stage(f"fidelity {name}"):
        rows = compare(job, target, built)
    order = _restorable(built)
    count = 1
    while order and _is_missed(job, name, rows):
        restored = order[:count]
        job.work.progress.note(
            f"{name}: max_drop_points is missed; {len(restored)} product(s) go back to float."
        )
        built, rows = _rebuilt(job, name, target, built, restored)
        if count >= len(order):
            break
        count *= 2
    return built, rows


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


def _is_missed(job: Job, name: str, rows: list[FidelityRow]) -> bool:
    limit = job.work.recipe.gates.max_drop_points
    lost = drop_points(rows, name)
    return limit is not None and lost is not None and lost[1] > limit


def _rebuilt(
    job: Job, name: str, target: Target, built: list[Compressed], restored: list[str]
) -> tuple[list[Compressed], list[FidelityRow]]:
    """Return the artefacts again, with `restored` in float and all other choices kept."""
    first = next(item.quantized for item in built if item.quantized is not None)
    kept = tuple(dict.fromkeys((*first.choices.kept_float, *restored)))
    pinned = first.choices.model_copy(update={"kept_float": kept})
    again = [
        replace(
            new,
            restored=tuple(restored),
            quantized=replace(
                new.quantized, noise=old.quantized.noise, candidates=old.quantized.candidates
            ),
        )
        for new, old in zip(build_target(job, name, target, pinned), built, strict=True)
        if new.quantized is not None and old.quantized is not None
    ]
    with job.work.stage(f"fidelity {name}"):
        return again, compare(job, target, again)
