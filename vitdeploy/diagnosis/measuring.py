"""What a run of both graphs side by side shows: errors by product and block, ranges, extremes.

Everything is reduced inside the graph, batch by batch: only sums leave the engine, no activation
is kept. Folds change the coordinates of some activations; `Map` undoes that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitdeploy.diagnosis.pairing import BlockPair, Pair, SitePair, clone_segment
from vitdeploy.diagnosis.schema import NO_ERROR_DB
from vitdeploy.errors import DataError
from vitdeploy.graph.folds.layernorm_scale import norm_parameters
from vitdeploy.graph.sites import add_initializer
from vitdeploy.graph.surgery import constant_of, remove_dead_
from vitdeploy.runner import Feeds

Batches = Callable[[], Iterable[Feeds]]
"""Starts another pass over the images: float32 feeds by input name."""
_AGREE = 0.1
"""Relative difference of slopes up to which rounded weights may be the cause."""
_MOST = 0.9
"""Share of the channels that must agree."""
_FLAT = 1e-6
"""Variance over mean square below which a channel is constant and has no slope."""


@dataclass(frozen=True)
class Map:
    """How the channels of an activation were folded: x' = factor * x + offset, both (C,)."""

    factor: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class Maps:
    """By site, of the activations that folds may have changed."""

    inputs: Mapping[str, Map]
    outputs: Mapping[str, Map]


@dataclass(frozen=True)
class Errors:
    """Signal-to-error ratios in dB and shares."""

    made_db: Mapping[str, float]
    """By INT8 product."""
    inherited_db: Mapping[str, float]
    """By product."""
    clipped_percent: Mapping[str, float]
    """By INT8 product."""
    block_made_db: Mapping[str, float]
    block_inherited_db: Mapping[str, float]
    output_db: float
    images: int


@dataclass
class Probes:
    """Reductions added to a pair's graph; they become its outputs."""

    model: ir.Model
    names: list[str] = field(default_factory=list)

    def node(self, operator: str, *inputs: ir.Value, **attributes: int | float) -> ir.Value:
        """Append a node; return its output, whose float type later nodes rely on."""
        made = ir.node(operator, list(inputs), attributes=attributes)
        self.model.graph.append(made)
        return made.outputs[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        """Return a new constant."""
        return add_initializer(self.model, "probe_constant", array)

    def publish(self, value: ir.Value, name: str, dtype: ir.DataType = ir.DataType.FLOAT) -> str:
        """Make `value` the output `probe//name`; return its name."""
        full = f"probe//{name}"
        value.name, value.dtype = full, dtype
        self.model.graph.outputs.append(value)
        self.names.append(full)
        return full

    def energy(self, value: ir.Value, name: str) -> str:
        """Publish the sum of squares of `value`."""
        return self.publish(self.node("ReduceSumSquare", value, keepdims=0), name)

    def apply(self, value: ir.Value, mapped: Map | None, shape: Sequence[int]) -> ir.Value:
        """Return factor * value + offset by channel; `shape` has -1 on the channel axis."""
        if mapped is None:
            return value
        factor = self.constant(mapped.factor.astype(np.float32).reshape(shape))
        offset = self.constant(mapped.offset.astype(np.float32).reshape(shape))
        return self.node("Add", self.node("Mul", value, factor), offset)

    def undo(self, value: ir.Value, mapped: Map | None, shape: Sequence[int]) -> ir.Value:
        """Return (value - offset) / factor by channel."""
        if mapped is None:
            return value
        factor = self.constant(mapped.factor.astype(np.float32).reshape(shape))
        offset = self.constant(mapped.offset.astype(np.float32).reshape(shape))
        return self.node("Div", self.node("Sub", value, offset), factor)


def run(probes: Probes, batches: Batches) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield (images, results by output name) of each batch."""
    from vitdeploy.targets.onnx import runner_from_model

    probes.model.graph.sort()
    remove_dead_(probes.model.graph)
    # The Q/DQ pairs are to be computed as they are written, not fused or folded away.
    with runner_from_model(probes.model, settings={"session.disable_quant_qdq": "1"}) as runner:
        for feeds in batches():
            yield len(next(iter(feeds.values()))), runner(feeds)


def summed(probes: Probes, batches: Batches) -> tuple[int, dict[str, np.ndarray]]:
    """Return the number of images and the float64 sum of each output over all batches.

    Raises:
        DataError: there are no images, or an output is NaN or infinite.
    """
    images, totals = 0, dict[str, np.ndarray]()
    for count, results in run(probes, batches):
        images += count
        for name, value in results.items():
            if not np.isfinite(value).all():
                raise DataError(
                    f"'{name.removeprefix('probe//')}' is NaN or infinite on these images; the "
                    "artefact or the images are damaged."
                )
            totals[name] = totals.get(name, np.float64(0)) + value.astype(np.float64)
    if not images:
        raise DataError("there is no image to diagnose on; give a folder with images to --calib.")
    return images, totals


def measure_maps(stripped: Pair, batches: Batches) -> Maps:
    """Return how folds changed the channels, from a run with activations in float.

    The least-squares line of the artefact's channel over the FP32 model's: rounded weights add
    noise to the former alone, so its slope is unbiased.

    Args:
        stripped: `pair_models(..., quantized=False)`; gets reductions.
        batches: a pass over the images.
    """
    probes = Probes(stripped.model)
    for site in stripped.sites:
        if site.folds_input:
            axis, rank = site.reference.channel_axis, site.reference.activation_rank
            _add_line(probes, site.reference.activation, site.input, (axis, rank), f"{site.name}/i")
        if site.folds_output:
            axis, rank = _output_axis(site), site.reference.activation_rank
            _add_line(probes, site.reference_output, site.output, (axis, rank), f"{site.name}/o")
    if not probes.names:
        return Maps({}, {})
    _, sums = summed(probes, batches)
    return Maps(
        {s.name: _input_map(s, sums) for s in stripped.sites if s.folds_input},
        {s.name: _line(sums, f"{s.name}/o") for s in stripped.sites if s.folds_output},
    )


def measure_errors(pair: Pair, maps: Maps, batches: Batches) -> Errors:
    """Return the errors of all products and blocks, from one pass.

    Args:
        pair: `pair_models(...)`; gets reductions.
        maps: of the same two graphs.
        batches: a pass over the images.
    """
    probes = Probes(pair.model)
    for site in pair.sites:
        _add_site(probes, site, maps)
    _add_blocks(probes, pair.blocks)
    for number, (reference, output) in enumerate(pair.outputs):
        probes.energy(probes.node("Identity", reference), f"out/{number}/signal")
        probes.energy(probes.node("Sub", output, reference), f"out/{number}/error")
    images, sums = summed(probes, batches)

    def ratio(name: str, error: str) -> float:
        signal, noise = sums[f"probe//{name}/signal"], sums[f"probe//{name}/{error}"]
        return decibels(float(signal), float(noise))

    quantized = [site.name for site in pair.sites if site.quantize is not None]
    shares = [
        float(sums[f"probe//out/{n}/error"]) / max(float(sums[f"probe//out/{n}/signal"]), 1e-300)
        for n in range(len(pair.outputs))
    ]
    return Errors(
        made_db={name: ratio(f"site/{name}", "made") for name in quantized},
        inherited_db={s.name: ratio(f"site/{s.name}", "inherited") for s in pair.sites},
        clipped_percent={
            name: 100.0
            * float(sums[f"probe//site/{name}/clipped"])
            / max(float(sums[f"probe//site/{name}/size"]), 1.0)
            for name in quantized
        },
        block_made_db={b.name: ratio(f"block/{b.name}", "made") for b in pair.blocks},
        block_inherited_db={b.name: ratio(f"block/{b.name}", "inherited") for b in pair.blocks},
        output_db=decibels(1.0, float(np.mean(shares))),
        images=images,
    )


def decibels(signal: float, error: float) -> float:
    """Return 10 log10(signal / error); 200 where there is no error."""
    if error <= 0.0:
        return NO_ERROR_DB
    return min(10.0 * float(np.log10(max(signal, 1e-300) / error)), NO_ERROR_DB)


def channel_shape(axis: int, rank: int) -> list[int]:
    """Return the shape that spreads (C,) over an activation."""
    shape = [1] * rank
    shape[axis] = -1
    return shape


def output_shape(site: SitePair) -> list[int]:
    """Return the shape that spreads (C,) over the site's output."""
    return channel_shape(_output_axis(site), site.reference.activation_rank)


def folded_input(probes: Probes, site: SitePair, maps: Maps) -> ir.Value:
    """Return the FP32 model's activation in the artefact's coordinates."""
    shape = channel_shape(site.reference.channel_axis, site.reference.activation_rank)
    return probes.apply(site.reference.activation, maps.inputs.get(site.name), shape)


def int8_output(probes: Probes, site: SitePair, maps: Maps, given: ir.Value) -> ir.Value:
    """Return what the artefact's product makes of `given`, in the FP32 model's coordinates."""
    result = clone_segment(probes.model.graph, site.output, {site.input: given})
    return probes.undo(result, maps.outputs.get(site.name), output_shape(site))


def _output_axis(site: SitePair) -> int:
    return 1 if site.reference.kind == "Conv" else -1


def _add_line(
    probes: Probes, value: ir.Value, folded: ir.Value, place: tuple[int, int], name: str
) -> None:
    axis, rank = place
    others = [other for other in range(rank) if other != axis % rank]
    axes = probes.constant(np.asarray(others, np.int64))
    product = probes.node("Mul", value, folded)
    for key, term in (("x", value), ("y", folded), ("xy", product)):
        probes.publish(probes.node("ReduceSum", term, axes, keepdims=0), f"{name}/{key}")
    square = probes.node("ReduceSumSquare", value, axes, keepdims=0)
    probes.publish(square, f"{name}/xx")
    size = probes.node("Size", value)
    probes.publish(probes.node("Cast", size, to=ir.DataType.FLOAT.value), f"{name}/size")


def _line(sums: Mapping[str, np.ndarray], name: str) -> Map:
    x, y, xy, xx, size = (sums[f"probe//{name}/{key}"] for key in ("x", "y", "xy", "xx", "size"))
    count = float(size) / len(x)
    mean_x, mean_y = x / count, y / count
    variance = xx / count - np.square(mean_x)
    flat = variance <= _FLAT * np.maximum(xx / count, 1e-300)
    covariance = xy / count - mean_x * mean_y
    factor = np.where(flat, 1.0, covariance / np.where(flat, 1.0, variance))
    # A fold never takes a channel away; a slope of nothing is a constant channel's.
    factor = np.where(np.abs(factor) < 1e-12, 1.0, factor)
    return Map(factor, mean_y - factor * mean_x)


def _input_map(site: SitePair, sums: Mapping[str, np.ndarray]) -> Map:
    """Return the input's map: exact where it follows from a LayerNorm's parameters."""
    fitted = _line(sums, f"{site.name}/i")
    if site.norms is None:
        return fitted
    (gamma, beta), (own_gamma, own_beta) = (norm_parameters(norm) for norm in site.norms)
    silent = gamma == 0
    factor = np.where(silent, 1.0, own_gamma / np.where(silent, 1.0, gamma))
    exact = Map(factor, own_beta - factor * beta)
    # The channels may have been reordered or joined on the way; then the fit tells.
    if factor.shape != fitted.factor.shape:
        return fitted
    agree = np.abs(factor - fitted.factor) <= _AGREE * np.abs(fitted.factor)
    return exact if np.mean(agree) > _MOST else fitted


def _add_site(probes: Probes, site: SitePair, maps: Maps) -> None:
    """Add the site's signal, the errors made and inherited, and its clipped share."""
    name, own = f"site/{site.name}", output_shape(site)
    mapped = maps.outputs.get(site.name)
    probes.energy(probes.node("Identity", site.reference_output), f"{name}/signal")
    seen = probes.undo(site.output, mapped, own)
    probes.energy(probes.node("Sub", seen, site.reference_output), f"{name}/inherited")
    if site.quantize is None:
        return
    given = folded_input(probes, site, maps)
    made = int8_output(probes, site, maps, given)
    probes.energy(probes.node("Sub", made, site.reference_output), f"{name}/made")
    _add_clipped(probes, site.quantize, given, name)


def _add_clipped(probes: Probes, quantize: ir.Node, given: ir.Value, name: str) -> None:
    scale, zero = (constant_of(value) for value in quantize.inputs[1:3])
    assert scale is not None
    assert zero is not None
    limits = np.iinfo(zero.dtype.name)
    # Half a step beyond the last code still rounds to it.
    low = (limits.min - float(zero) - 0.5) * float(scale)
    high = (limits.max - float(zero) + 0.5) * float(scale)
    below = probes.node("Less", given, probes.constant(np.asarray(low, np.float32)))
    above = probes.node("Greater", given, probes.constant(np.asarray(high, np.float32)))
    outside = probes.node("Cast", probes.node("Or", below, above), to=ir.DataType.FLOAT.value)
    probes.publish(probes.node("ReduceSum", outside, keepdims=0), f"{name}/clipped")
    size = probes.node("Cast", probes.node("Size", given), to=ir.DataType.FLOAT.value)
    probes.publish(size, f"{name}/size")


def _add_blocks(probes: Probes, blocks: Sequence[BlockPair]) -> None:
    """Add the error at each block's output, also where the blocks before it are exact."""
    exact: dict[ir.Value, ir.Value] = {}
    for block in blocks:
        name = f"block/{block.name}"
        probes.energy(probes.node("Identity", block.reference), f"{name}/signal")
        probes.energy(probes.node("Sub", block.output, block.reference), f"{name}/inherited")
        result = clone_segment(probes.model.graph, block.output, exact)
        probes.energy(probes.node("Sub", result, block.reference), f"{name}/made")
        exact[block.output] = block.reference
