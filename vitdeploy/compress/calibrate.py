"""Statistics of activations, streamed: reductions run inside the graph, image by image.

No activation is ever kept: the graph is extended by reductions over all axes but the
channel's, only their few numbers leave the engine, and they are merged here. Which ranges
follow from the statistics is decided in `int8`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import CompressionError
from vitdeploy.graph.observers import bring_observers_forward_
from vitdeploy.graph.qdq import ActivationRange, QuantScheme
from vitdeploy.graph.sites import add_initializer
from vitdeploy.runner import Feeds

Batches = Callable[[], Iterable[Feeds]]
"""Starts another pass over the calibration images: float32 feeds by input name."""


@dataclass(frozen=True)
class ChannelStatistics:
    """What one activation did over all calibration images, per channel."""

    low: np.ndarray
    """(C,) float32 minimum."""
    high: np.ndarray
    """(C,) float32 maximum."""
    mean: np.ndarray
    """(C,) float64 mean."""
    square: np.ndarray
    """(C,) float64 mean square."""
    positions: float
    """Tokens or pixels per image."""
    half: "ChannelStatistics | None" = None
    """Of every other batch alone, the first included; None where there was one batch. What is
    derived from it can be judged on the batches between, which are `held_out`."""

    @property
    def range(self) -> ActivationRange:
        """The interval that holds every value seen."""
        return ActivationRange(float(self.low.min()), float(self.high.max()))

    @property
    def variance(self) -> np.ndarray:
        """(C,) float64 variance."""
        spread: np.ndarray = np.maximum(self.square - np.square(self.mean), 0.0)
        return spread

    def folded(self, scale: np.ndarray, shift: np.ndarray) -> "ChannelStatistics":
        """Return the statistics of (x - shift) / scale; both (C,), scale positive."""
        return ChannelStatistics(
            low=(self.low - shift) / scale,
            high=(self.high - shift) / scale,
            mean=(self.mean - shift) / scale,
            square=(self.square - 2 * shift * self.mean + np.square(shift)) / np.square(scale),
            positions=self.positions,
        )


@dataclass(frozen=True)
class RangeCandidate:
    """A range for an activation x, or for (x - shift) / scale once a fold has made it that."""

    interval: ActivationRange
    scale: np.ndarray | None = None
    """(C,) positive, or None for one."""
    shift: np.ndarray | None = None
    """(C,) in the units of x, or None for zero."""


@dataclass(frozen=True)
class Probe:
    """An activation to observe."""

    value_name: str
    channel_axis: int
    rank: int


def collect_statistics(
    model: ir.Model,
    probes: Sequence[Probe],
    batches: Batches,
    progress: Callable[[int], None] | None = None,
) -> dict[str, ChannelStatistics]:
    """Return the statistics of each probed activation by value name.

    Args:
        model: FP32 graph; not changed.
        probes: activations, each name once.
        batches: a pass over the images.
        progress: called with the number of images seen so far.

    Raises:
        CompressionError: no image, or an activation that is NaN or infinite.
    """
    observed = model.clone()
    values = _values_by_name(observed)
    reductions = {p.value_name: _add_reductions(observed, values[p.value_name], p) for p in probes}
    merged: dict[str, _Merging] = {probe.value_name: _Merging() for probe in probes}
    halves: dict[str, _Merging] = {probe.value_name: _Merging() for probe in probes}
    images = 0
    bring_observers_forward_(observed.graph, len(model.graph))
    for number, (feeds, results) in enumerate(_run(observed, batches)):
        count = len(next(iter(feeds.values())))
        images += count
        for name, outputs in reductions.items():
            seen = [results[output] for output in outputs]
            merged[name].add(seen, count)
            if number % 2 == 0:
                halves[name].add(seen, count)
        if progress:
            progress(images)
    if not images:
        raise CompressionError("calibration got no image; give a folder with images to --calib.")
    found = {name: merging.result(name) for name, merging in merged.items()}
    if number == 0:
        return found
    return {name: replace(own, half=halves[name].result(name)) for name, own in found.items()}


def held_out(batches: Batches) -> Batches:
    """Return the batches that `ChannelStatistics.half` is not of; or the only one there is."""

    def passes() -> Iterator[Feeds]:
        first: Feeds | None = None
        number = -1
        for number, feeds in enumerate(batches()):
            if number % 2:
                yield feeds
            elif number == 0:
                first = feeds
        if number == 0 and first is not None:
            yield first

    return passes


def collect_range_errors(
    model: ir.Model,
    candidates: Mapping[Probe, Sequence[RangeCandidate]],
    scheme: QuantScheme,
    batches: Batches,
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Return the mean squared rounding and clipping error of each candidate range.

    Returns:
        By value name a float64 array (candidates, C), in the units of x, per position.
    """
    observed = model.clone()
    values = _values_by_name(observed)
    outputs = {
        probe.value_name: _add_errors(observed, values[probe.value_name], probe, listed, scheme)
        for probe, listed in candidates.items()
    }
    sizes = {p.value_name: _add_size(observed, values[p.value_name], p) for p in candidates}
    totals: dict[str, np.ndarray] = {}
    positions = dict.fromkeys(outputs, 0.0)
    images = 0
    bring_observers_forward_(observed.graph, len(model.graph))
    for feeds, results in _run(observed, batches):
        images += len(next(iter(feeds.values())))
        for name, error_names in outputs.items():
            errors = np.stack([results[error].astype(np.float64) for error in error_names])
            totals[name] = totals[name] + errors if name in totals else errors
            positions[name] += float(results[sizes[name]]) / errors.shape[1]
        if progress:
            progress(images)
    for probe, listed in candidates.items():
        # The errors were summed in the units of the folded activation.
        for number, candidate in enumerate(listed):
            if candidate.scale is not None:
                totals[probe.value_name][number] *= np.square(candidate.scale)
    return {name: total / positions[name] for name, total in totals.items()}


def limited(batches: Batches, images: int, is_over: Callable[[], bool] = lambda: False) -> Batches:
    """Return the same pass, ended once `images` images were read or the time is over.

    One batch is read in any case.
    """

    def passes() -> Iterator[Feeds]:
        seen = 0
        for feeds in batches():
            yield feeds
            seen += len(next(iter(feeds.values())))
            if seen >= images or is_over():
                return

    return passes


class _Merging:
    """Running extremes and sums of one activation."""

    def __init__(self) -> None:
        self.low: np.ndarray | None = None
        self.high: np.ndarray | None = None
        self.total: np.ndarray | float = 0.0
        self.square: np.ndarray | float = 0.0
        self.positions = 0.0
        self.images = 0

    def add(self, results: Sequence[np.ndarray], images: int) -> None:
        low, high, total, square, size = results
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        self.total = self.total + total.astype(np.float64)
        self.square = self.square + square.astype(np.float64)
        self.positions += float(size) / len(low)
        self.images += images

    def result(self, name: str) -> ChannelStatistics:
        if self.low is None or self.high is None:
            raise CompressionError(f"activation '{name}' was never observed")
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all()):
            raise CompressionError(
                f"activation '{name}' holds NaN or infinity on the calibration images, so it "
                "cannot be quantised. Check the model's weights and the images."
            )
        count = max(self.positions, 1.0)
        mean, square = np.asarray(self.total) / count, np.asarray(self.square) / count
        return ChannelStatistics(self.low, self.high, mean, square, self.positions / self.images)


def _run(observed: ir.Model, batches: Batches) -> Iterator[tuple[Feeds, dict[str, np.ndarray]]]:
    from vitdeploy.targets.onnx import runner_from_model

    # Without this ONNX Runtime would fold the Q/DQ pairs of the error probes away.
    settings = {"session.disable_quant_qdq": "1"}
    with runner_from_model(observed, settings=settings, in_listed_order=True) as runner:
        for feeds in batches():
            yield feeds, runner(feeds)


def _values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    values = {str(value.name): value for value in model.graph.inputs}
    for node in model.graph:
        values.update({str(out.name): out for out in node.outputs if out.name})
    model.graph.outputs.clear()
    return values


def _other_axes(model: ir.Model, probe: Probe) -> ir.Value:
    channel = probe.channel_axis % probe.rank
    axes = [axis for axis in range(probe.rank) if axis != channel]
    return add_initializer(model, f"observe_axes_{probe.rank}_{channel}", np.asarray(axes))


def _add_reductions(model: ir.Model, value: ir.Value, probe: Probe) -> tuple[str, ...]:
    axes = _other_axes(model, probe)
    names = []
    for operator in ("ReduceMin", "ReduceMax", "ReduceSum", "ReduceSumSquare"):
        node = ir.node(operator, [value, axes], attributes={"keepdims": 0})
        names.append(_publish(model, node, f"{probe.value_name}/{operator}"))
    return (*names, _add_size(model, value, probe))


def _add_size(model: ir.Model, value: ir.Value, probe: Probe) -> str:
    return _publish(model, ir.node("Size", [value]), f"{probe.value_name}/Size", ir.DataType.INT64)


def _add_errors(
    model: ir.Model,
    value: ir.Value,
    probe: Probe,
    candidates: Sequence[RangeCandidate],
    scheme: QuantScheme,
) -> list[str]:
    """Add each candidate's error; candidates of one fold, as arrays, share its nodes."""
    folded: dict[tuple[int, int], ir.Value] = {}
    names = []
    for candidate in candidates:
        key = (id(candidate.scale), id(candidate.shift))
        if key not in folded:
            folded[key] = _folded(model, value, probe, candidate)
        names.append(_add_error(model, folded[key], probe, candidate.interval, scheme))
    return names


def _folded(model: ir.Model, value: ir.Value, probe: Probe, candidate: RangeCandidate) -> ir.Value:
    neutral = {"Sub": 0.0, "Div": 1.0}
    for operator, vector in (("Sub", candidate.shift), ("Div", candidate.scale)):
        if vector is not None and np.any(vector != neutral[operator]):
            node = ir.node(operator, [value, _channel_vector(model, vector, probe)])
            model.graph.append(node)
            value = node.outputs[0]
    return value


def _add_error(
    model: ir.Model,
    folded: ir.Value,
    probe: Probe,
    interval: ActivationRange,
    scheme: QuantScheme,
) -> str:
    """Add Q, DQ, the difference and its sum of squares; return the output's name."""
    scale, zero_point = interval.parameters(scheme)
    parameters = [
        add_initializer(model, "observe_scale", np.asarray(scale, np.float32)),
        add_initializer(model, "observe_zero_point", np.asarray(zero_point)),
    ]
    quantize = ir.node("QuantizeLinear", [folded, *parameters])
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *parameters])
    difference = ir.node("Sub", [dequantize.outputs[0], folded])
    model.graph.extend([quantize, dequantize, difference])
    axes = _other_axes(model, probe)
    total = ir.node("ReduceSumSquare", [difference.outputs[0], axes], attributes={"keepdims": 0})
    return _publish(model, total, f"{probe.value_name}/error_{len(model.graph.outputs)}")


def _channel_vector(model: ir.Model, vector: np.ndarray, probe: Probe) -> ir.Value:
    shape = [1] * probe.rank
    shape[probe.channel_axis] = -1
    return add_initializer(model, "observe_channels", vector.astype(np.float32).reshape(shape))


def _publish(
    model: ir.Model, node: ir.Node, name: str, dtype: ir.DataType = ir.DataType.FLOAT
) -> str:
    model.graph.append(node)
    output = node.outputs[0]
    output.name = name
    output.dtype = dtype
    model.graph.outputs.append(output)
    return name
