"""Strength by measurement: how each activation is folded and clipped before it becomes INT8.

For every activation a handful of folds and ranges is tried on calibration images, in the target's
own scheme, inside the graph. The harm behind the weights ranks them all; the best are computed up
to the output of their block, and the one that changes it least is kept.
What is quantised at all is decided in `int8`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.block_error import Candidate, Rounding, collect_block_errors
from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import (
    Batches,
    ChannelStatistics,
    Probe,
    RangeCandidate,
    collect_range_errors,
    limited,
)
from vitdeploy.compress.smoothing import (
    FoldGroup,
    Refusal,
    Strength,
    find_groups,
    strength_from_label,
    strengths,
    weight_error,
)
from vitdeploy.errors import CompressionError
from vitdeploy.graph.qdq import ActivationRange, QuantScheme
from vitdeploy.graph.sites import WeightSite, kernel_matrix
from vitdeploy.recipe import Int8Choices, Int8Section

CLIP_RATIOS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Shares of the min-max range that are tried."""
MEASURED_STRENGTHS = 3
"""How many fold strengths, best estimates first, are measured on images; no fold is one more."""
WORTH_CHANGING = 0.9
"""Of the error without a fold, or with the whole range: what is left must be below this share, for
other images are never quite like those of the calibration."""
SEARCH_IMAGES = 64
"""Calibration images the search reads at most; ranges need all, error sums do not."""
SEARCH_TOKENS = 8192
"""Tokens after which error sums have settled, at the activation that has fewest an image (on
FastViT, 16 images instead of 64 cost 3.4 dB); 16 images are read in any case."""
_LEAST_IMAGES = 16
_BLOCK_IMAGES = 32
"""Images on which the best folds are judged at their block's output."""
_BUDGET_SHARE = 0.5
_IMAGE_COST = 3.0
"""What an image costs the search, in passes of the FP32 graph."""
_BUILD_COST = 4.0
"""What the graph of all candidates takes to build, in builds of the graph of the statistics."""


@dataclass(frozen=True)
class FoldRequest:
    """What is to be quantised, and how it is searched."""

    names: frozenset[str]
    """Products that the recipe lets be quantised."""
    scheme: QuantScheme
    options: Int8Section
    budget: Budget
    pinned: Int8Choices | None = None
    """Choices of an earlier run; nothing is measured then."""


@dataclass(frozen=True)
class SearchInput:
    """What the search needs to know."""

    model: ir.Model
    """FP32 graph, not changed."""
    sites: Sequence[WeightSite]
    """The products that will be quantised."""
    statistics: Mapping[str, ChannelStatistics]
    """By activation name, over all calibration images."""
    batches: Batches
    request: FoldRequest
    """Half of what its budget has left may be spent; with nothing left, estimates choose."""


@dataclass(frozen=True)
class Found:
    """What the search chose."""

    ranges: dict[str, ActivationRange]
    """By activation name, after the folds."""
    folds: tuple[tuple[FoldGroup, Strength], ...]
    """The folds to apply; none that change nothing."""
    means: dict[str, np.ndarray]
    """By site name (in,) mean of its input after the folds, for bias correction."""
    choices: Int8Choices
    refusals: tuple[Refusal, ...]
    candidates: int
    """How many combinations of fold and range were measured."""


def search(given: SearchInput) -> Found:
    """Return the folds and ranges of least measured error.

    Raises:
        CompressionError: pinned choices that do not fit the graph.
    """
    groups: list[FoldGroup] = []
    refusals: list[Refusal] = []
    if given.request.options.folds == "search":
        groups, refusals = find_groups(given.model, given.sites)
        if given.request.scheme.most_int8_attention_tokens:
            # A quantised softmax does not sum to one, which a shift of the values relies on.
            groups = [replace(g, can_shift=g.can_shift and g.fold != "value_scale") for g in groups]
    ratios = CLIP_RATIOS if given.request.options.clip == "mse" else (1.0,)
    if given.request.pinned is not None:
        return _from_pins(given, groups, refusals, given.request.pinned)
    # what is tried follows from one half of the images and is judged on the other: a fold that fits
    # every channel to what it was seen to do leaves no room for what it does on other images
    tried = replace(given, statistics={n: own.half or own for n, own in given.statistics.items()})
    options = {group.name: _shortlist(group, tried) for group in groups}
    budget = given.request.budget
    grid = _candidates(tried, groups, options, ratios)
    listed = {probe: [c for row in rows for c in row] for probe, rows in grid.items()}
    if all(len(candidates) == 1 for candidates in listed.values()):
        return _estimated(given, groups, refusals)
    first = _IMAGE_COST * budget.image_seconds * budget.batch_images
    first += _BUILD_COST * budget.build_seconds
    if not budget.affords(first, "measuring folds and ranges"):
        return _estimated(given, groups, refusals)
    is_over = budget.until(_BUDGET_SHARE)
    batches = limited(given.batches, _images_needed(given), is_over)
    errors = collect_range_errors(given.model, listed, given.request.scheme, batches)
    costs = _costs(given.sites, grid, errors)
    harm = {group.name: _harm(group, options[group.name], costs, tried) for group in groups}
    harm |= _harm_to_blocks(tried, groups, options, grid, costs)
    best = {g.name: options[g.name][_least(harm[g.name])] for g in groups}
    clips = _best_clips(tried, groups, options, best, costs, ratios)
    labels = {name: strength.label for name, strength in best.items()}
    chosen = {g.name: strength_from_label(g, labels[g.name], given.statistics) for g in groups}
    choices = Int8Choices(strengths=labels, clips=clips)
    count = sum(len(candidates) for candidates in listed.values())
    return _found(given, groups, refusals, chosen, choices, count)


def _images_needed(given: SearchInput) -> int:
    # A classifier's single row is no measure of how much there is to see.
    several = [own.positions for own in given.statistics.values() if own.positions > 1]
    tokens = min(several, default=1.0)
    return max(_LEAST_IMAGES, min(SEARCH_IMAGES, int(SEARCH_TOKENS / tokens)))


def _estimated(
    given: SearchInput,
    groups: list[FoldGroup],
    refusals: list[Refusal],
) -> Found:
    """Return the best estimates, unclipped: nothing is measured."""
    options = {group.name: _shortlist(group, given) for group in groups}
    # Without a better estimate than no fold, that is the only option.
    chosen = {name: listed[min(1, len(listed) - 1)] for name, listed in options.items()}
    labels = {name: strength.label for name, strength in chosen.items()}
    return _found(given, groups, refusals, chosen, Int8Choices(strengths=labels), 0)


def _from_pins(
    given: SearchInput, groups: list[FoldGroup], refusals: list[Refusal], pinned: Int8Choices
) -> Found:
    names = {group.name for group in groups}
    activations = {str(site.activation.name) for site in given.sites}
    strange = [*(set(pinned.strengths) - names), *(set(pinned.clips) - activations)]
    if strange:
        raise CompressionError(
            f"int8.choices name {sorted(strange)[:3]}, which this graph does not have; remove "
            "int8.choices from the recipe to search again."
        )
    try:
        chosen = {
            group.name: strength_from_label(
                group, pinned.strengths.get(group.name, "off"), given.statistics
            )
            for group in groups
        }
    except ValueError as error:
        raise CompressionError(f"int8.choices: {error}") from error
    return _found(given, groups, refusals, chosen, pinned, 0)


def _found(
    given: SearchInput,
    groups: list[FoldGroup],
    refusals: list[Refusal],
    chosen: Mapping[str, Strength],
    choices: Int8Choices,
    candidates: int,
) -> Found:
    folded = dict(given.statistics)
    means = {s.name: given.statistics[str(s.activation.name)].mean for s in given.sites}
    folds = []
    for group in groups:
        strength = chosen[group.name]
        if strength.label == "off":
            continue
        folds.append((group, strength))
        for reader in group.readers:
            name = str(reader.site.activation.name)
            scale, shift = strength.scale[reader.channels], strength.shift[reader.channels]
            folded[name] = given.statistics[name].folded(scale, shift)
            means[reader.site.name] = folded[name].mean
    ranges = {
        name: _shrunk(own.range, choices.clips.get(name, 1.0)) for name, own in folded.items()
    }
    return Found(ranges, tuple(folds), means, choices, tuple(refusals), candidates)


def _shortlist(group: FoldGroup, given: SearchInput) -> list[Strength]:
    """Return no fold and the best estimates."""
    ranked = strengths(group, given.statistics, given.request.scheme)
    off = next(candidate for candidate in ranked if candidate.label == "off")
    better = list(takewhile(lambda candidate: candidate is not off, ranked))
    return [off, *better[:MEASURED_STRENGTHS]]


def _candidates(
    given: SearchInput,
    groups: Sequence[FoldGroup],
    options: Mapping[str, Sequence[Strength]],
    ratios: Sequence[float],
) -> dict[Probe, list[list[RangeCandidate]]]:
    """Return by activation a row per strength with a candidate per clip ratio."""
    grid: dict[Probe, list[list[RangeCandidate]]] = {}
    done = set()
    for group in groups:
        for reader in group.readers:
            name = str(reader.site.activation.name)
            if name in done:
                continue
            done.add(name)
            rows = []
            for strength in options[group.name]:
                scale, shift = strength.scale[reader.channels], strength.shift[reader.channels]
                interval = given.statistics[name].folded(scale, shift).range
                rows.append([RangeCandidate(_shrunk(interval, r), scale, shift) for r in ratios])
            grid[_probe(reader.site)] = rows
    for site in given.sites:
        name = str(site.activation.name)
        if name not in done:
            done.add(name)
            interval = given.statistics[name].range
            grid[_probe(site)] = [[RangeCandidate(_shrunk(interval, r)) for r in ratios]]
    return grid


def _costs(
    sites: Sequence[WeightSite],
    grid: Mapping[Probe, Sequence[Sequence[RangeCandidate]]],
    errors: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return by activation (strengths, ratios): squared error at the products' outputs.

    An error e_c on channel c adds e_c^2 * ||W_c||^2, so ranges are chosen by the damage they do
    behind the weights, not before them.
    """
    sensitivity: dict[str, np.ndarray] = {}
    for site in sites:
        name = str(site.activation.name)
        norms = np.square(kernel_matrix(site)).sum(axis=(1, 2))
        sensitivity[name] = sensitivity.get(name, 0.0) + norms
    return {
        probe.value_name: (errors[probe.value_name] @ sensitivity[probe.value_name]).reshape(
            len(rows), -1
        )
        for probe, rows in grid.items()
    }


def _harm(
    group: FoldGroup,
    options: Sequence[Strength],
    costs: Mapping[str, np.ndarray],
    given: SearchInput,
) -> np.ndarray:
    """Return (options,) the squared error that each adds at the outputs of the group's products."""
    activations = sorted({str(reader.site.activation.name) for reader in group.readers})
    return np.asarray(
        [
            sum(float(costs[name][number].min()) for name in activations)
            + weight_error(group, strength, given.statistics, given.request.scheme)
            for number, strength in enumerate(options)
        ]
    )


def _harm_to_blocks(
    given: SearchInput,
    groups: Sequence[FoldGroup],
    options: Mapping[str, Sequence[Strength]],
    grid: Mapping[Probe, Sequence[Sequence[RangeCandidate]]],
    costs: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return by group (options,) the squared error at its block's output, where that can be told.

    Each option is clipped as does least harm to its products.
    """
    budget = given.request.budget
    several = [group for group in groups if len(options[group.name]) > 1]
    rows = {probe.value_name: rows for probe, rows in grid.items()}
    candidates = {
        group: [
            Candidate(strength, _clipped(group, number, rows, costs))
            for number, strength in enumerate(options[group.name])
        ]
        for group in several
    }
    passes = 1 + max((len(listed) for listed in candidates.values()), default=0)
    seconds = passes * (budget.image_seconds * budget.batch_images + budget.build_seconds)
    if not several or not budget.affords(seconds, "measuring folds at their block's output"):
        return {}
    batches = limited(given.batches, _BLOCK_IMAGES, budget.until(_BUDGET_SHARE))
    rounding = Rounding(
        given.request.scheme, given.statistics, given.request.options.bias_correction
    )
    return collect_block_errors(given.model, candidates, rounding, batches)


def _clipped(
    group: FoldGroup,
    number: int,
    rows: Mapping[str, Sequence[Sequence[RangeCandidate]]],
    costs: Mapping[str, np.ndarray],
) -> dict[str, ActivationRange]:
    names = {str(reader.site.activation.name) for reader in group.readers}
    return {
        name: rows[name][number][int(np.argmin(costs[name][number]))].interval for name in names
    }


def _best_clips(
    given: SearchInput,
    groups: Sequence[FoldGroup],
    options: Mapping[str, Sequence[Strength]],
    chosen: Mapping[str, Strength],
    costs: Mapping[str, np.ndarray],
    ratios: Sequence[float],
) -> dict[str, float]:
    row = {str(site.activation.name): 0 for site in given.sites}
    for group in groups:
        number = list(options[group.name]).index(chosen[group.name])
        row.update({str(reader.site.activation.name): number for reader in group.readers})
    return {name: ratios[_least(costs[name][number])] for name, number in row.items()}


def _least(errors: np.ndarray) -> int:
    """Return the place of the least error; the first, which changes nothing, where that is near."""
    best = int(np.argmin(errors))
    return best if errors[best] < WORTH_CHANGING * errors[0] else 0


def _probe(site: WeightSite) -> Probe:
    return Probe(str(site.activation.name), site.channel_axis, site.activation_rank)


def _shrunk(interval: ActivationRange, ratio: float) -> ActivationRange:
    return ActivationRange(interval.low * ratio, interval.high * ratio)
