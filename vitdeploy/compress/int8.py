"""Static INT8: which products are quantised, with which ranges.

ViT-safe by construction: only products with constant weights are quantised, per-channel
weights, per-tensor activations; LayerNorm, Softmax, GELU, residual Adds, relative
positions and attention's products of two activations stay in float.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, partial

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.attention_folds import AttentionFold, fold_attention_
from vitdeploy.compress.attention_int8 import (
    ATTENTION_IMAGES,
    ATTENTION_SHARE,
    AttentionInt8,
    AttentionRequest,
    quantize_attention_,
)
from vitdeploy.compress.bias import correct_bias_
from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches, held_out
from vitdeploy.compress.folding import (
    FoldedModel,
    Memory,
    Statistics,
    folded_model,
    measure_activations,
)
from vitdeploy.compress.placement import Placement, measure_placement
from vitdeploy.compress.rotating import BUDGET_SHARE, Rotated, choose_rotations, rotate_
from vitdeploy.compress.rounding import Grid, round_weights
from vitdeploy.compress.sampling import mixed
from vitdeploy.compress.search import SEARCH_IMAGES, FoldRequest, Found
from vitdeploy.errors import CompressionError, suggest
from vitdeploy.graph.cleanup import annotate_shapes_
from vitdeploy.graph.gemm import matmul_from_gemm_
from vitdeploy.graph.packed_qkv import split_qkv_
from vitdeploy.graph.pointwise import matmul_from_pointwise_conv_
from vitdeploy.graph.qdq import QuantizedWeight, QuantScheme, insert_qdq_
from vitdeploy.graph.sites import WeightSite, array_of, find_weight_sites
from vitdeploy.recipe import Int8Choices, Int8Section

PLACEMENT_SHARE = 0.5
"""Of what the budget has left when it comes to which products stay in float."""


@dataclass(frozen=True)
class FoldRecord:
    """What was chosen for one group of sites, or why nothing could be."""

    site: str
    fold: str
    strength: str
    """`off`, `shift`, an alpha, or an alpha with `+shift`; `whole` where there is only one;
    `refused` where no fold applies."""
    reason: str | None = None


@dataclass(frozen=True)
class SearchCost:
    """What the choices cost."""

    seconds: float = 0.0
    """Without the pass over all calibration images."""
    candidates: int = 0
    """How many rotations, and combinations of fold strength and range, were measured on images."""
    skipped: tuple[str, ...] = ()
    """What the budget did not allow."""


@dataclass(frozen=True)
class Int8Result:
    """The quantised graph and what is true of it."""

    model: ir.Model
    quantized: tuple[str, ...]
    """Node names in INT8."""
    kept_float: tuple[str, ...]
    """Node names of products with weights that stay in float."""
    int8_macs_percent: float
    """Share of the MACs of products with weights that run in INT8, 0..100."""
    folds: tuple[FoldRecord, ...] = ()
    choices: Int8Choices = field(default_factory=Int8Choices)
    """What the search chose, as a recipe pins it."""
    noise: Mapping[str, float] = field(default_factory=dict)
    """By site: squared output error over squared output with that site alone in INT8."""
    placement_reason: str | None = None
    """Why `noise` was not measured, where it was not."""
    attention: AttentionInt8 = field(default_factory=AttentionInt8)
    """Which attention is INT8 throughout, and why other attention is not."""
    search: SearchCost = field(default_factory=SearchCost)
    others: tuple[tuple[str, "Int8Result"], ...] = ()
    """The same with fewer products in INT8, for an engine to say whether that is faster: what is in
    float there, and the result. They cost little, for weights are shared."""


def quantize_int8(
    model: ir.Model,
    scheme: QuantScheme,
    batches: Batches,
    options: Int8Section,
    memory: Memory | None = None,
    pinned: Int8Choices | None = None,
) -> Int8Result:
    """Return a quantised copy of the FP32 graph.

    Args:
        model: canonical FP32 graph; not changed.
        scheme: what the target takes.
        batches: a pass over the calibration images.
        options: of the recipe.
        memory: of what earlier calls saw in this graph on these images; this call adds to it.
        pinned: choices of an earlier run, so that nothing is searched.

    Raises:
        CompressionError: nothing to quantise, a name in `keep_float` or `pinned` that fits no
            node, no images, NaN activations or weights.
    """
    copy = _prepared(model, scheme)
    every = find_weight_sites(copy)
    _require_sound(every)
    budget = Budget(options.search_seconds if pinned is None else math.inf)
    if scheme.most_int8_attention_tokens and pinned is None:
        budget.reserved = ATTENTION_SHARE
    names = frozenset(site.name for site in _selected(every, options.keep_float))
    request = FoldRequest(names, scheme, options, budget, pinned)
    few = cache(partial(mixed, batches, SEARCH_IMAGES))
    unseen = cache(partial(mixed, held_out(batches), SEARCH_IMAGES))
    observer = _Observer(model, batches, memory or Memory(), request)
    rotated, statistics = _rotated_(copy, observer, few)
    turned = _attention_folded_(copy, request, few)
    folded = folded_model(copy, request, unseen, statistics)
    placement = _placement(folded, request, few, rotated.kept_float)
    kept = set(placement.kept_float)
    chosen = [name for name in folded.quantization.weights if name not in kept]
    rounded = _rounded(folded, chosen, observer, few, (*rotated.seeds.items(), *turned))
    quantized = _quantized_model(folded, chosen, rounded, corrects_bias=options.bias_correction)
    attention = AttentionInt8()
    products_alone = quantized.clone()
    if scheme.most_int8_attention_tokens:
        many = partial(mixed, batches, ATTENTION_IMAGES)
        known = None if pinned is None else pinned.attention_int8
        budget.reserved = 0.0
        attention = quantize_attention_(
            quantized,
            AttentionRequest(
                model, folded.model, sum(folded.macs.values()), scheme, many, budget, known
            ),
        )
    found = folded.found
    result = Int8Result(
        model=quantized,
        quantized=tuple(chosen),
        kept_float=tuple(site.name for site in every if site.name not in chosen),
        int8_macs_percent=100.0
        * sum(folded.macs[name] for name in chosen)
        / sum(folded.macs.values()),
        folds=_records(found, rotated, turned),
        choices=found.choices.model_copy(
            update={
                "rotations": rotated.seeds,
                "kept_float": placement.kept_float,
                "attention_int8": dict(attention.ceilings),
                "rounded": tuple(rounded),
            }
        ),
        noise=placement.noise,
        placement_reason=placement.reason,
        attention=attention,
        search=SearchCost(
            budget.spent, rotated.candidates + found.candidates, tuple(budget.skipped)
        )
        if pinned is None
        else SearchCost(),
    )
    if pinned is not None:
        return result
    if attention.ceilings:
        return replace(result, others=(_without_attention(result, products_alone),))
    return replace(result, others=_without_convolutions(result, folded, rounded, options))


def _without_attention(result: Int8Result, products_alone: ir.Model) -> tuple[str, Int8Result]:
    choices = result.choices.model_copy(update={"attention_int8": {}})
    return "attention in float", replace(
        result, model=products_alone, choices=choices, attention=AttentionInt8()
    )


def _without_convolutions(
    result: Int8Result,
    folded: FoldedModel,
    rounded: Mapping[str, QuantizedWeight],
    options: Int8Section,
) -> tuple[tuple[str, Int8Result], ...]:
    """Return the result with convolutions in float; none where there are none, or only they."""
    kinds = {site.name: site.node.op_type for site in find_weight_sites(folded.model)}
    convolutions = tuple(name for name in result.quantized if kinds[name] == "Conv")
    left = tuple(name for name in result.quantized if name not in convolutions)
    if not convolutions or not left:
        return ()
    model = _quantized_model(folded, left, rounded, corrects_bias=options.bias_correction)
    kept = (*result.choices.kept_float, *convolutions)
    lost = sum(folded.macs[name] for name in convolutions) / sum(folded.macs.values())
    other = replace(
        result,
        model=model,
        quantized=left,
        kept_float=(*result.kept_float, *convolutions),
        int8_macs_percent=result.int8_macs_percent - 100.0 * lost,
        choices=result.choices.model_copy(
            update={
                "kept_float": kept,
                "rounded": tuple(name for name in result.choices.rounded if name in left),
            }
        ),
    )
    return (("convolutions in float", other),)


def _prepared(model: ir.Model, scheme: QuantScheme) -> ir.Model:
    """Return a copy whose products are of the kinds that `scheme` has INT8 for."""
    copy = model.clone()
    matmul_from_gemm_(copy)
    if scheme.pointwise_convs_as_matmul:
        matmul_from_pointwise_conv_(copy)
    if scheme.splits_qkv:
        split_qkv_(copy)
        annotate_shapes_(copy)
    return copy


@dataclass(frozen=True)
class _Observer:
    """Measures one graph on all calibration images, outside the search's budget."""

    model: ir.Model
    """The FP32 graph that all targets share."""
    batches: Batches
    memory: Memory
    request: FoldRequest

    def activations(self, prepared: ir.Model, seeds: Mapping[str, int]) -> Statistics:
        """Return the statistics of `prepared`, the graph as the scheme wants it and rotated."""
        scheme, budget = self.request.scheme, self.request.budget
        key: tuple[object, ...] = ()
        graphs = [self.model, prepared]
        if seeds:
            key = (*sorted(seeds.items()), scheme.pointwise_convs_as_matmul, scheme.splits_qkv)
            graphs = [prepared]
        with budget.paused():
            return self.memory.activations(key, graphs, self.batches, budget)


def _rotated_(copy: ir.Model, observer: _Observer, few: Batches) -> tuple[Rotated, Statistics]:
    """Rotate streams of `copy`, as pinned or as measured; return them and the statistics then."""
    request = observer.request
    if request.pinned is not None:
        rotate_(copy, request.pinned.rotations)
        return Rotated(request.pinned.rotations), observer.activations(
            copy, request.pinned.rotations
        )
    statistics = observer.activations(copy, {})
    if request.options.folds == "off":
        return Rotated({}), statistics
    part = request.budget.part(BUDGET_SHARE)

    def fold(candidate: ir.Model, images: Batches) -> FoldedModel:
        # The ranges of all images are known for the graph as it came.
        own = statistics if candidate is copy else measure_activations(candidate, images, part)
        # judged on images that gave the ranges; see `choose_rotations`
        whole = {name: replace(seen, half=None) for name, seen in own.items()}
        return folded_model(candidate, replace(request, budget=part), images, whole)

    rotated = choose_rotations(copy, fold, few, part)
    if rotated.seeds:
        rotate_(copy, rotated.seeds)
        statistics = observer.activations(copy, rotated.seeds)
    return rotated, statistics


def _attention_folded_(
    copy: ir.Model, request: FoldRequest, few: Batches
) -> tuple[AttentionFold, ...]:
    """Fold queries and keys of `copy`, where its attention may become INT8."""
    if not request.scheme.most_int8_attention_tokens or request.options.folds == "off":
        return ()
    return fold_attention_(copy, request.scheme, few)


def _placement(
    folded: FoldedModel, request: FoldRequest, batches: Batches, proposed: tuple[str, ...]
) -> Placement:
    """Return which sites stay in float: as pinned, as measured, or none."""
    if request.pinned is not None:
        return Placement({}, request.pinned.kept_float, "pinned by the recipe")
    if request.options.placement == "all":
        return Placement({}, (), "the recipe asks for every product in INT8")
    budget = request.budget.part(PLACEMENT_SHARE)
    found = measure_placement(
        folded.model, folded.quantization, folded.macs, batches, budget, proposed
    )
    if found.reason is not None:
        budget.skipped.append("which products are too noisy for INT8")
    return found


def _rounded(
    folded: FoldedModel,
    names: Sequence[str],
    observer: _Observer,
    batches: Batches,
    turns: tuple[Hashable, ...],
) -> dict[str, QuantizedWeight]:
    """Return by product the codes that GPTQ rounds better than to nearest."""
    request, scheme = observer.request, observer.request.scheme
    wanted = set(names if request.pinned is None else request.pinned.rounded) & set(names)
    if request.options.rounding == "nearest" or not wanted:
        return {}
    forms = (scheme.weight_bits, scheme.pointwise_convs_as_matmul, scheme.splits_qkv)
    strengths = folded.found.choices.strengths
    known = observer.memory.codes((forms, turns, tuple(strengths.items())))
    if request.pinned is not None and wanted <= set(known):
        return {name: codes for name, codes in known.items() if name in wanted}
    sites = [site for site in find_weight_sites(folded.model) if site.name in wanted]
    grid = Grid(scheme.weight_bits)
    tokens = {site.name: folded.macs[site.name] / site.macs_per_position() for site in sites}
    found = round_weights(folded.model, sites, batches, grid, request.budget, tokens)
    known.update(found)
    return found


def _quantized_model(
    folded: FoldedModel,
    names: Sequence[str],
    rounded: Mapping[str, QuantizedWeight],
    *,
    corrects_bias: bool,
) -> ir.Model:
    """Return a copy with Q/DQ around the named products."""
    copy = folded.model.clone()
    weights = {**folded.quantization.weights, **rounded}
    sites = [site for site in find_weight_sites(copy) if site.name in set(names)]
    if corrects_bias:
        for site in sites:
            correct_bias_(copy, site, weights[site.name], folded.found.means[site.name])
    insert_qdq_(copy, sites, folded.found.ranges, folded.quantization.scheme, weights)
    return copy


def _records(
    found: Found, rotated: Rotated, attention: Sequence[AttentionFold]
) -> tuple[FoldRecord, ...]:
    turned = [FoldRecord(n, "rotation", f"seed {seed}") for n, seed in rotated.seeds.items()]
    turned += [FoldRecord(fold.site, fold.fold, "whole") for fold in attention]
    folds = {group.name: group.fold for group, _ in found.folds}
    chosen = [
        FoldRecord(name, folds.get(name, "-"), label)
        for name, label in found.choices.strengths.items()
    ]
    refused = [FoldRecord(r.name, r.fold, "refused", r.reason) for r in found.refusals]
    return (*turned, *chosen, *refused)


def _selected(sites: Sequence[WeightSite], keep_float: Sequence[str]) -> list[WeightSite]:
    for pattern in keep_float:
        if not any(fnmatch(site.name, pattern) for site in sites):
            names = [site.name for site in sites]
            raise CompressionError(
                f"int8.keep_float: '{pattern}' fits none of the {len(names)} products with "
                f"weights, the first of which is '{names[0]}'.{suggest(pattern, names)}"
            )
    selected = [s for s in sites if not any(fnmatch(s.name, p) for p in keep_float)]
    if not selected:
        raise CompressionError(
            "int8.keep_float keeps every product in float; use --precision fp32 instead."
        )
    return selected


def _require_sound(sites: Sequence[WeightSite]) -> None:
    if not sites:
        raise CompressionError(
            "the graph has no MatMul, Gemm or Conv with constant weights, so INT8 has "
            "nothing to quantise; use --precision fp32 or fp16."
        )
    for site in sites:
        if not np.isfinite(array_of(site.weight)).all():
            raise CompressionError(
                f"weight '{site.weight.name}' of '{site.name}' holds NaN or infinity; "
                "the checkpoint is damaged."
            )
