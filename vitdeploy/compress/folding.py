"""From an FP32 graph to the same graph folded, with the ranges and codes of every product.

Statistics, the search for strengths and ranges, the folds, rounding to nearest: what has to be
done once for the graph that ships, and on fewer images for each rotation of it that is tried.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches, ChannelStatistics, Probe, collect_statistics
from vitdeploy.compress.placement import Quantization
from vitdeploy.compress.search import FoldRequest, Found, SearchInput, search
from vitdeploy.errors import CompressionError
from vitdeploy.graph.qdq import QuantizedWeight, QuantScheme, quantize_weight
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


class Memory:
    """What the calibration images did in one FP32 graph, kept for the next target or retry.

    The statistics hold for every scheme; with these kept, the pass over all images is made once for
    each graph, and not once for each target. With the codes kept, a retry with more products in
    float rounds none of the others again.
    """

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self.progress = progress
        """Called with the number of images seen."""
        self._seen: dict[Hashable, _Seen] = {}
        self._codes: dict[Hashable, dict[str, QuantizedWeight]] = {}

    def codes(self, key: Hashable) -> dict[str, QuantizedWeight]:
        """Return what weights were rounded to, by product, to be read and added to.

        Args:
            key: names the folded graph and the codes' bits.
        """
        return self._codes.setdefault(key, {})

    def activations(
        self, key: Hashable, graphs: Sequence[ir.Model], batches: Batches, budget: Budget
    ) -> Statistics:
        """Return the statistics of what every product of the last graph reads.

        Args:
            key: names the values of the graphs' activations, as the rotations do.
            graphs: one graph, or the one that all targets share and what one of them needs: the
                same values by the same names, whatever else was rewritten.
            batches: a pass over the calibration images, the same for every call.
            budget: is told what an image takes.
        """
        seen = self._seen.setdefault(key, _Seen())
        for graph in graphs:
            seen.add(graph, batches, self.progress)
        budget.image_seconds, budget.build_seconds = seen.image_seconds, seen.build_seconds
        budget.batch_images = seen.batch_images
        return {name: seen.statistics[probe] for name, probe in _sources(graphs[-1]).items()}


class _Seen:
    """Statistics of one graph's values, and what a pass cost."""

    def __init__(self) -> None:
        self.statistics: dict[Probe, ChannelStatistics] = {}
        self.image_seconds = 0.0
        self.build_seconds = 0.0
        self.batch_images = 1

    def add(
        self, graph: ir.Model, batches: Batches, progress: Callable[[int], None] | None
    ) -> None:
        """Measure what of `graph` is missing; two passes where one value has two channel axes."""
        missing = [p for p in dict.fromkeys(_sources(graph).values()) if p not in self.statistics]
        while missing:
            once = {probe.value_name: probe for probe in missing}
            missing = [probe for probe in missing if once[probe.value_name] != probe]
            found = self._measured(graph, list(once.values()), batches, progress)
            self.statistics |= {once[name]: own for name, own in found.items()}

    def _measured(
        self,
        graph: ir.Model,
        probes: Sequence[Probe],
        batches: Batches,
        progress: Callable[[int], None] | None,
    ) -> Mapping[str, ChannelStatistics]:
        images = 0
        first = 0.0

        def count(done: int) -> None:
            nonlocal images, first
            first = first or time.perf_counter() - start
            self.batch_images = max(self.batch_images, done - images)
            images = done
            if progress:
                progress(done)

        start = time.perf_counter()
        found = collect_statistics(graph, probes, batches, count)
        seconds = time.perf_counter() - start
        others = max(images - self.batch_images, 1)
        self.image_seconds = seconds / images
        if images > self.batch_images:
            self.image_seconds = (seconds - first) / others
            self.build_seconds = max(first - self.batch_images * self.image_seconds, 0.0)
        return found


def measure_activations(model: ir.Model, batches: Batches, budget: Budget) -> Statistics:
    """Return the statistics of what every product reads, and tell the budget what an image takes.

    Args:
        model: canonical FP32 graph; not changed.
        batches: a pass over the calibration images.
        budget: of the search.

    Raises:
        CompressionError: no images, NaN activations, unknown shapes.
    """
    return Memory().activations(None, [model], batches, budget)


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
        batches: a pass over the calibration images; over `held_out` ones where `statistics` have
            halves.
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


def _sources(model: ir.Model) -> dict[str, Probe]:
    """Return by activation (and by output of a convolution) where its statistics are measured."""
    probes: dict[str, Probe] = {}
    for site in find_weight_sites(model):
        try:
            rank = site.activation_rank
        except ValueError as error:
            raise CompressionError(
                f"{error}, so its channels cannot be told; run onnx.shape_inference on the file."
            ) from error
        probes[str(site.activation.name)] = _source(site.activation, site.channel_axis, rank)
        if site.kind == "Conv":
            output = str(site.node.outputs[0].name)
            probes.setdefault(output, Probe(output, 1, rank))
    return probes


def _source(value: ir.Value, axis: int, rank: int) -> Probe:
    """Return a probe of what `value` is a transposed view of: targets differ in transposes."""
    axis %= rank
    node = value.producer()
    while node is not None and node.op_type == "Transpose" and node.inputs[0] is not None:
        order = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
        axis, value = order[axis], node.inputs[0]
        node = value.producer()
    return Probe(str(value.name), axis, rank)


def _positions(site: WeightSite, statistics: Mapping[str, ChannelStatistics]) -> float:
    """Return tokens or output pixels per image, the factor of the MACs."""
    if site.kind == "Conv":
        return statistics[str(site.node.outputs[0].name)].positions
    return statistics[str(site.activation.name)].positions
