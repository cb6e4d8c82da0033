"""From an FP32 graph to the same graph folded, with the ranges and codes of every product.

Statistics, the search for strengths and ranges, the folds, rounding to nearest: what has to be
done once for the graph that ships, and on fewer images for each rotation of it that is tried.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches, ChannelStatistics, Probe, collect_statistics
from vitdeploy.compress.placement import Quantization
from vitdeploy.compress.search import FoldRequest, Found, SearchInput, search
from vitdeploy.errors import CompressionError
from vitdeploy.graph.qdq import QuantScheme, quantize_weight
from vitdeploy.graph.sites import WeightSite, array_of, find_weight_sites

Statistics = Mapping[str, ChannelStatistics]
"""By the name of an activation."""


@dataclass(frozen=True)
class FoldedModel:
    """A graph whose function is unchanged and whose products are ready for INT8."""

    model: ir.Model
    macs: dict[str, float]
    """By every product with weights: multiply-accumulates per image."""
    found: Found
    quantization: Quantization
    """Ranges, and weights rounded to nearest, of the products that will be quantised."""


def measure_activations(
    model: ir.Model,
    batches: Batches,
    budget: Budget,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Return the statistics of what every product reads, and tell the budget what an image takes.

    Args:
        model: canonical FP32 graph; not changed.
        batches: a pass over the calibration images.
        budget: of the search.
        progress: called with the number of images seen.

    Raises:
        CompressionError: no images, NaN activations, unknown shapes.
    """
    images = 0

    def count(done: int) -> None:
        nonlocal images
        images = done
        if progress:
            progress(done)

    start = time.perf_counter()
    statistics = collect_statistics(model, _probes(find_weight_sites(model)), batches, count)
    budget.image_seconds = (time.perf_counter() - start) / images
    return statistics


def folded_model(
    model: ir.Model,
    request: FoldRequest,
    batches: Batches,
    statistics: Statistics,
) -> FoldedModel:
    """Return a folded copy of an FP32 graph.

    Args:
        model: canonical FP32 graph; not changed.
        request: what is asked for.
        batches: a pass over the calibration images.
        statistics: of this graph, by `measure_activations`.

    Raises:
        CompressionError: pinned choices that do not fit.
    """
    copy = model.clone()
    every = find_weight_sites(copy)
    sites = [site for site in every if site.name in request.names]
    sites = [s for s in sites if _gains(s, request.scheme, statistics)] or sites
    macs = {s.name: s.macs_per_position() * _positions(s, statistics) for s in every}
    found = search(SearchInput(copy, sites, statistics, batches, request))
    for group, strength in found.folds:
        group.apply_(copy, strength.scale, strength.shift)
    chosen = {site.name for site in sites}
    bits = request.scheme.weight_bits
    weights = {
        site.name: quantize_weight(array_of(site.weight), site.output_axis, bits)
        for site in find_weight_sites(copy)
        if site.name in chosen
    }
    return FoldedModel(copy, macs, found, Quantization(found.ranges, weights, request.scheme))


def _gains(
    site: WeightSite, scheme: QuantScheme, statistics: Mapping[str, ChannelStatistics]
) -> bool:
    """Return whether the runtime of `scheme` gains from `site` in INT8."""
    if site.groups > 1 and not scheme.quantizes_grouped_convs:
        return False
    if site.kind == "Conv" and min(site.weight.const_value.shape[:2]) < scheme.least_conv_channels:
        return False
    return scheme.quantizes_single_rows or _positions(site, statistics) > 1


def _probes(sites: Sequence[WeightSite]) -> list[Probe]:
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
