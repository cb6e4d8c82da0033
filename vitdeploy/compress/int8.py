"""Static INT8: which products are quantised, with which ranges.

ViT-safe by construction: only products with constant weights are quantised, per-channel
weights, per-tensor activations; LayerNorm, Softmax, GELU, residual Adds, relative
positions and attention's products of two activations stay in float.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.bias import correct_bias_
from vitdeploy.compress.calibrate import Batches, ChannelStatistics, Probe, collect_statistics
from vitdeploy.compress.placement import (
    Placement,
    Quantization,
    measure_placement,
)
from vitdeploy.compress.search import Found, SearchInput, search
from vitdeploy.errors import CompressionError, suggest
from vitdeploy.graph.gemm import matmul_from_gemm_
from vitdeploy.graph.pointwise import matmul_from_pointwise_conv_
from vitdeploy.graph.qdq import QuantScheme, insert_qdq_, quantize_weight
from vitdeploy.graph.sites import WeightSite, array_of, find_weight_sites
from vitdeploy.recipe import Int8Choices, Int8Section


@dataclass(frozen=True)
class FoldRecord:
    """What was chosen for one group of sites, or why nothing could be."""

    site: str
    fold: str
    strength: str
    """`off`, `shift`, an alpha, or an alpha with `+shift`; `refused` where no fold applies."""
    reason: str | None = None


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
    candidates: int = 0
    """How many combinations of fold strength and range were measured on images."""


def quantize_int8(
    model: ir.Model,
    scheme: QuantScheme,
    batches: Batches,
    options: Int8Section,
    progress: Callable[[int], None] | None = None,
    pinned: Int8Choices | None = None,
) -> Int8Result:
    """Return a quantised copy of the FP32 graph.

    Args:
        model: canonical FP32 graph; not changed.
        scheme: what the target takes.
        batches: a pass over the calibration images.
        options: of the recipe.
        progress: called with the number of images seen.
        pinned: choices of an earlier run, so that nothing is searched.

    Raises:
        CompressionError: nothing to quantise, a name in `keep_float` or `pinned` that fits no
            node, no images, NaN activations or weights.
    """
    copy = model.clone()
    matmul_from_gemm_(copy)
    if scheme.pointwise_convs_as_matmul:
        matmul_from_pointwise_conv_(copy)
    every = find_weight_sites(copy)
    if not every:
        raise CompressionError(
            "the graph has no MatMul, Gemm or Conv with constant weights, so INT8 has "
            "nothing to quantise; use --precision fp32 or fp16."
        )
    _require_finite(every)
    sites = _selected(every, options.keep_float)
    statistics = collect_statistics(copy, _probes(every, scheme), batches, progress)
    sites = [s for s in sites if _gains(s, scheme, statistics)] or sites
    macs = {s.name: s.macs_per_position() * _positions(s, statistics) for s in every}
    found = search(SearchInput(copy, sites, statistics, scheme, batches, options, pinned))
    for group, strength in found.folds:
        group.apply_(copy, strength.scale, strength.shift)
    chosen = {site.name for site in sites}
    sites = [site for site in find_weight_sites(copy) if site.name in chosen]
    weights = {
        site.name: quantize_weight(array_of(site.weight), site.output_axis, scheme.weight_bits)
        for site in sites
    }
    quantization = Quantization(found.ranges, weights, scheme)
    placement = _placement(copy, quantization, macs, batches, (options, pinned))
    sites = [site for site in sites if site.name not in placement.kept_float]
    if options.bias_correction:
        for site in sites:
            correct_bias_(copy, site, weights[site.name], found.means[site.name])
    insert_qdq_(copy, sites, found.ranges, scheme, weights)
    chosen = {site.name for site in sites}
    total = sum(macs.values())
    return Int8Result(
        model=copy,
        quantized=tuple(site.name for site in sites),
        kept_float=tuple(site.name for site in every if site.name not in chosen),
        int8_macs_percent=100.0 * sum(macs[name] for name in chosen) / total,
        folds=_records(found),
        choices=found.choices.model_copy(update={"kept_float": placement.kept_float}),
        noise=placement.noise,
        placement_reason=placement.reason,
        candidates=found.candidates,
    )


def _placement(
    model: ir.Model,
    quantization: Quantization,
    macs: Mapping[str, float],
    batches: Batches,
    asked: tuple[Int8Section, Int8Choices | None],
) -> Placement:
    """Return which sites stay in float: as pinned, as measured, or none."""
    options, pinned = asked
    if pinned is not None:
        return Placement({}, pinned.kept_float, "pinned by the recipe")
    if options.placement == "all":
        return Placement({}, (), "the recipe asks for every product in INT8")
    return measure_placement(model, quantization, macs, batches, options.placement_seconds)


def _records(found: Found) -> tuple[FoldRecord, ...]:
    folds = {group.name: group.fold for group, _ in found.folds}
    chosen = [
        FoldRecord(name, folds.get(name, "-"), label)
        for name, label in found.choices.strengths.items()
    ]
    refused = [FoldRecord(r.name, r.fold, "refused", r.reason) for r in found.refusals]
    return (*chosen, *refused)


def _gains(
    site: WeightSite, scheme: QuantScheme, statistics: Mapping[str, ChannelStatistics]
) -> bool:
    """Return whether the runtime of `scheme` gains from `site` in INT8."""
    if site.groups > 1 and not scheme.quantizes_grouped_convs:
        return False
    return scheme.quantizes_single_rows or _positions(site, statistics) > 1


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


def _require_finite(sites: Sequence[WeightSite]) -> None:
    for site in sites:
        if not np.isfinite(array_of(site.weight)).all():
            raise CompressionError(
                f"weight '{site.weight.name}' of '{site.name}' holds NaN or infinity; "
                "the checkpoint is damaged."
            )


def _probes(sites: Sequence[WeightSite], scheme: QuantScheme) -> list[Probe]:
    probes: dict[str, Probe] = {}
    for site in sites:
        name = str(site.activation.name)
        try:
            rank = site.activation_rank
        except ValueError as error:
            raise CompressionError(
                f"{error}, so its channels cannot be told; run onnx.shape_inference on the file."
            ) from error
        probes[name] = Probe(name, site.channel_axis, rank)
        if site.kind == "Conv":
            output = str(site.node.outputs[0].name)
            probes.setdefault(output, Probe(output, 1, rank))
    return list(probes.values())


def _positions(site: WeightSite, statistics: Mapping[str, ChannelStatistics]) -> float:
    """Return tokens or output pixels per image, the factor of the MACs."""
    if site.kind == "Conv":
        return statistics[str(site.node.outputs[0].name)].positions
    return statistics[str(site.activation.name)].positions
