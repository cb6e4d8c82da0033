"""Static INT8: which products are quantised, with which ranges.

ViT-safe by construction: only products with constant weights are quantised, per-channel
weights, per-tensor activations; LayerNorm, Softmax, GELU, residual Adds, relative
positions and attention's products of two activations stay in float.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.calibrate import (
    Batches,
    ChannelStatistics,
    Probe,
    collect_range_errors,
    collect_statistics,
)
from vitdeploy.errors import CompressionError, suggest
from vitdeploy.graph.gemm import matmul_from_gemm_
from vitdeploy.graph.qdq import ActivationRange, QuantScheme, insert_qdq_
from vitdeploy.graph.sites import WeightSite, array_of, find_weight_sites
from vitdeploy.recipe import Int8Section

CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Shares of the min-max range the MSE search tries."""
CLIP_BATCHES = 16
"""Batches of the calibration set the MSE search reads; ranges need all, errors do not."""


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


def quantize_int8(
    model: ir.Model,
    scheme: QuantScheme,
    batches: Batches,
    options: Int8Section,
    progress: Callable[[int], None] | None = None,
) -> Int8Result:
    """Return a quantised copy of the FP32 graph.

    Args:
        model: canonical FP32 graph; not changed.
        scheme: what the target takes.
        batches: a pass over the calibration images.
        options: of the recipe.
        progress: called with the number of images seen.

    Raises:
        CompressionError: nothing to quantise, a name in `keep_float` that fits no node, no
            images, NaN activations or weights.
    """
    copy = model.clone()
    matmul_from_gemm_(copy)
    every = find_weight_sites(copy)
    if not every:
        raise CompressionError(
            "the graph has no MatMul, Gemm or Conv with constant weights, so INT8 has "
            "nothing to quantise; use --precision fp32 or fp16."
        )
    _require_finite(every)
    sites = _selected(every, options.keep_float)
    probes = _probes(every, scheme)
    statistics = collect_statistics(copy, probes, batches, progress)
    sites = [s for s in sites if _gains(s, scheme, statistics)] or sites
    ranges = {name: stats.range for name, stats in statistics.items()}
    if options.clip == "mse":
        ranges.update(_clipped_ranges(copy, sites, ranges, scheme, batches))
    macs = {s.name: s.macs_per_position() * _positions(s, statistics) for s in every}
    chosen = {site.name for site in sites}
    insert_qdq_(copy, sites, ranges, scheme)
    total = sum(macs.values())
    return Int8Result(
        model=copy,
        quantized=tuple(site.name for site in sites),
        kept_float=tuple(site.name for site in every if site.name not in chosen),
        int8_macs_percent=100.0 * sum(macs[name] for name in chosen) / total,
    )


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
        rank = _rank(site)
        name = str(site.activation.name)
        probes[name] = Probe(name, site.channel_axis, rank)
        if site.kind == "Conv":
            output = str(site.node.outputs[0].name)
            probes.setdefault(output, Probe(output, 1, rank))
    return list(probes.values())


def _rank(site: WeightSite) -> int:
    if site.kind == "Conv":
        return len(site.weight.const_value.shape)
    if site.kind == "Gemm":
        return 2
    shape = site.activation.shape
    if shape is None:
        raise CompressionError(
            f"the shape of '{site.activation.name}' is unknown, so its channels cannot be "
            "told; run onnx.shape_inference on the file first."
        )
    return len(shape)


def _positions(site: WeightSite, statistics: Mapping[str, ChannelStatistics]) -> float:
    """Return tokens or output pixels per image, the factor of the MACs."""
    if site.kind == "Conv":
        return statistics[str(site.node.outputs[0].name)].positions
    return statistics[str(site.activation.name)].positions


def _clipped_ranges(
    model: ir.Model,
    sites: Sequence[WeightSite],
    ranges: Mapping[str, ActivationRange],
    scheme: QuantScheme,
    batches: Batches,
) -> dict[str, ActivationRange]:
    """Return for every quantised input the range of least error behind its weights."""
    inputs = {str(site.activation.name) for site in sites}
    searched = [probe for probe in _probes(sites, scheme) if probe.value_name in inputs]
    candidates = {
        probe: [_shrunk(ranges[probe.value_name], ratio) for ratio in CLIP_RATIOS]
        for probe in searched
    }
    errors = collect_range_errors(
        model, candidates, scheme, lambda: islice(batches(), CLIP_BATCHES)
    )
    sensitivity = _sensitivities(sites)
    return {
        probe.value_name: candidates[probe][
            int(np.argmin(errors[probe.value_name] @ sensitivity[probe.value_name]))
        ]
        for probe in searched
    }


def _shrunk(interval: ActivationRange, ratio: float) -> ActivationRange:
    return ActivationRange(interval.low * ratio, interval.high * ratio)


def _sensitivities(sites: Sequence[WeightSite]) -> dict[str, np.ndarray]:
    """Return by activation name (C,): the squared norm of what each input channel feeds.

    An error e_c on channel c adds e_c^2 * ||W_c||^2 to the squared error of the product,
    so ranges are chosen by the damage they do behind the weights, not before them.
    """
    sensitivities: dict[str, np.ndarray] = {}
    for site in sites:
        weight = array_of(site.weight).astype(np.float64)
        if site.kind == "Conv":
            # (out, in / groups, kh, kw): input channel g * (in / groups) + i feeds group g.
            per_group = weight.reshape(site.groups, -1, *weight.shape[1:])
            norms = np.square(per_group).sum(axis=(1, *range(3, per_group.ndim))).reshape(-1)
        else:
            norms = np.square(weight).sum(axis=site.output_axis)
        name = str(site.activation.name)
        sensitivities[name] = sensitivities.get(name, 0.0) + norms
    return sensitivities
