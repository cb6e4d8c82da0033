"""Which residual streams are rotated before anything is folded: chosen by the output's noise.

A rotation (`graph.folds.rotation`) spreads what stands out on single channels over all of them. It
costs nothing when the model runs, so a few seeded rotations are tried beside none: each is folded
and quantised on few images, and the one with the quietest output is kept. Rotations that would
insert a MatMul are not tried.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches, limited
from vitdeploy.compress.folding import FoldedModel
from vitdeploy.compress.placement import measure_placement, relative_noise
from vitdeploy.errors import CompressionError
from vitdeploy.graph.folds import rotation
from vitdeploy.graph.qdq import insert_qdq_
from vitdeploy.graph.sites import find_weight_sites
from vitdeploy.runner import Feeds, Outputs

SEEDS = (1, 2, 3)
"""Rotations tried for each stream: any spreads outliers, one fits the weights a little better."""
LEAST_GAIN = 0.15
"""Share of the noise that a rotation must take away; less is chance."""
BUDGET_SHARE = 0.4
"""Of the whole search's budget."""
MOST_IMAGES = 64
"""Calibration images that each candidate is folded on, where the budget allows."""
LEAST_IMAGES = 16
NOISE_IMAGES = 16
"""Of these, on how many it is judged."""
NOISE_SHARE = 0.3
"""Of the budget then left, for finding out which products are too noisy for INT8."""
_IMAGE_COST = 6.0
"""What an image costs a trial, in passes of the FP32 graph; folds are measured."""
_BUILD_COST = 6.0
_TRIALS = 3
"""Trials that must be affordable before any begins: none, one, and which products are too noisy."""

FoldGraph = Callable[[ir.Model, Batches], FoldedModel]
"""Returns a folded copy of a graph; ranges are those of the given images."""


@dataclass(frozen=True)
class Rotated:
    """What was chosen."""

    seeds: dict[str, int]
    """By stream (its first norm) that is rotated: the seed."""
    candidates: int = 0
    """How many rotations were measured."""
    kept_float: tuple[str, ...] = ()
    """The products that were in float meanwhile: what is too noisy without rotation."""


def rotate_(model: ir.Model, seeds: Mapping[str, int]) -> None:
    """Rotate the named streams in place.

    Raises:
        CompressionError: the graph has no such stream, or it cannot be rotated.
    """
    streams = {site.name: site for site in rotation.find(model)} if seeds else {}
    for name, seed in seeds.items():
        if name not in streams:
            raise CompressionError(
                f"int8.choices rotate the stream of '{name}', which this graph does not have; "
                "remove int8.choices from the recipe to search again."
            )
        site = streams[name]
        turn = rotation.mean_preserving_rotation(site.channels, seed)
        try:
            rotation.apply_(model, site, turn)
        except ValueError as error:
            raise CompressionError(f"int8.choices: {error}") from error


def choose_rotations(model: ir.Model, fold: FoldGraph, batches: Batches, budget: Budget) -> Rotated:
    """Return the rotations that make the INT8 model's output quietest.

    Args:
        model: FP32 graph; not changed.
        fold: makes a graph ready for INT8.
        batches: a pass over the calibration images; at most 64 are read.
        budget: may be spent; `fold` spends it too.
    """
    streams = [site.name for site in rotation.find(model) if rotation.applies(site) is None]
    images = _images_affordable(budget)
    trial_seconds = _IMAGE_COST * images * budget.image_seconds
    trial_seconds += _BUILD_COST * budget.build_seconds
    if not streams or not budget.affords(
        _TRIALS * trial_seconds, "rotation of the residual stream"
    ):
        return Rotated({})
    # Judged on images that gave the ranges: on others, what so few images did not show drowns
    # the difference (vit_cifar10, outliers off the axes: 1.4e-5 and 1.7e-5 here, 7e-5 and 5e-5).
    few = limited(batches, images)
    reference = _reference(model, limited(few, NOISE_IMAGES))
    start = budget.spent
    plain = fold(model, few)
    trial_seconds = budget.spent - start
    kept = _too_noisy(plain, few, budget.part(NOISE_SHARE))
    start = budget.spent
    best = _noise(plain, kept, reference)
    trial_seconds += budget.spent - start
    chosen: dict[str, int] = {}
    count = 0
    for stream in streams:
        for seed in SEEDS:
            if not budget.affords(trial_seconds, f"rotations of '{stream}' after {count} trials"):
                return Rotated(chosen, count, kept)
            start = budget.spent
            tried = {**chosen, stream: seed}
            candidate = model.clone()
            rotate_(candidate, tried)
            noise = _noise(fold(candidate, few), kept, reference)
            trial_seconds = budget.spent - start
            count += 1
            least_gain = 0.0 if stream in chosen else LEAST_GAIN
            if noise < (1 - least_gain) * best:
                best, chosen = noise, tried
    return Rotated(chosen, count, kept)


def _images_affordable(budget: Budget) -> int:
    """Return on how many images to judge, for all seeds of one stream to fit the budget."""
    if not budget.image_seconds or budget.left == math.inf:
        return MOST_IMAGES
    trials = _TRIALS + len(SEEDS)
    images = budget.left / (trials * _IMAGE_COST * budget.image_seconds)
    return int(min(max(images, LEAST_IMAGES), MOST_IMAGES))


def _reference(model: ir.Model, batches: Batches) -> list[tuple[Feeds, Outputs]]:
    from vitdeploy.targets.onnx import runner_from_model

    with runner_from_model(model) as runner:
        return [(feeds, runner(feeds)) for feeds in batches()]


def _too_noisy(plain: FoldedModel, batches: Batches, budget: Budget) -> tuple[str, ...]:
    """Return the products that will stay in float: their noise would drown the difference."""
    found = measure_placement(plain.model, plain.quantization, plain.macs, batches, budget)
    return found.kept_float


def _noise(
    folded: FoldedModel, kept: Sequence[str], reference: Sequence[tuple[Feeds, Outputs]]
) -> float:
    """Return squared error over squared output, all products but `kept` in INT8."""
    from vitdeploy.targets.onnx import runner_from_model

    copy = folded.model.clone()
    own = folded.quantization
    sites = [s for s in find_weight_sites(copy) if s.name in own.weights and s.name not in kept]
    insert_qdq_(copy, sites, own.ranges, own.scheme, own.weights)
    with runner_from_model(copy, settings={"session.disable_quant_qdq": "1"}) as runner:
        return float(np.mean([relative_noise(expected, runner(f)) for f, expected in reference]))
