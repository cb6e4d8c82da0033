"""Statistics of activations, streamed: reductions run inside the graph, image by image.

No activation is ever kept: the graph is extended by reductions over all axes but the
channel's, only their few numbers leave the engine, and they are merged here. Which ranges
follow from the statistics is decided in `int8`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import CompressionError
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
    square: np.ndarray
    """(C,) float64 mean square."""
    positions: float
    """Tokens or pixels per image."""

    @property
    def range(self) -> ActivationRange:
        """The interval that holds every value seen."""
        return ActivationRange(float(self.low.min()), float(self.high.max()))


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
    images = 0
    for feeds, results in _run(observed, batches):
        count = len(next(iter(feeds.values())))
        images += count
        for name, (low, high, square, size) in reductions.items():
            merged[name].add(results[low], results[high], results[square], results[size], count)
        if progress:
            progress(images)
    if not images:
        raise CompressionError("calibration got no image; give a folder with images to --calib.")
    return {name: merging.result(name) for name, merging in merged.items()}


def collect_range_errors(
    model: ir.Model,
    candidates: Mapping[Probe, Sequence[ActivationRange]],
    scheme: QuantScheme,
    batches: Batches,
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Return the sum of squared rounding and clipping errors of each candidate range.

    Returns:
        By value name a float64 array (candidates, C).
    """
    observed = model.clone()
    values = _values_by_name(observed)
    outputs = {
        probe.value_name: [
            _add_error(observed, values[probe.value_name], probe, interval, scheme)
            for interval in intervals
        ]
        for probe, intervals in candidates.items()
    }
    totals: dict[str, np.ndarray] = {}
    images = 0
    for feeds, results in _run(observed, batches):
        images += len(next(iter(feeds.values())))
        for name, error_names in outputs.items():
            errors = np.stack([results[error].astype(np.float64) for error in error_names])
            totals[name] = totals[name] + errors if name in totals else errors
        if progress:
            progress(images)
    return totals


class _Merging:
    """Running minimum, maximum and sum of squares of one activation."""

    def __init__(self) -> None:
        self.low: np.ndarray | None = None
        self.high: np.ndarray | None = None
        self.square: np.ndarray | float = 0.0
        self.positions = 0.0
        self.images = 0

    def add(
        self, low: np.ndarray, high: np.ndarray, square: np.ndarray, size: np.ndarray, images: int
    ) -> None:
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
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
        square = np.asarray(self.square) / max(self.positions, 1.0)
        return ChannelStatistics(self.low, self.high, square, self.positions / self.images)


def _run(observed: ir.Model, batches: Batches) -> Iterator[tuple[Feeds, dict[str, np.ndarray]]]:
    from vitdeploy.targets.onnx import runner_from_model

    # Without this ONNX Runtime would fold the Q/DQ pairs of the error probes away.
    with runner_from_model(observed, settings={"session.disable_quant_qdq": "1"}) as runner:
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


def _add_reductions(model: ir.Model, value: ir.Value, probe: Probe) -> tuple[str, str, str, str]:
    axes = _other_axes(model, probe)
    names = []
    for operator in ("ReduceMin", "ReduceMax", "ReduceSumSquare"):
        node = ir.node(operator, [value, axes], attributes={"keepdims": 0})
        names.append(_publish(model, node, f"{probe.value_name}/{operator}"))
    size = ir.node("Size", [value])
    names.append(_publish(model, size, f"{probe.value_name}/Size", ir.DataType.INT64))
    return names[0], names[1], names[2], names[3]


def _add_error(
    model: ir.Model,
    value: ir.Value,
    probe: Probe,
    interval: ActivationRange,
    scheme: QuantScheme,
) -> str:
    scale, zero_point = interval.parameters(scheme)
    parameters = [
        add_initializer(model, "observe_scale", np.asarray(scale, np.float32)),
        add_initializer(model, "observe_zero_point", np.asarray(zero_point)),
    ]
    quantize = ir.node("QuantizeLinear", [value, *parameters])
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *parameters])
    difference = ir.node("Sub", [dequantize.outputs[0], value])
    axes = _other_axes(model, probe)
    total = ir.node("ReduceSumSquare", [difference.outputs[0], axes], attributes={"keepdims": 0})
    for node in (quantize, dequantize, difference):
        model.graph.append(node)
    return _publish(model, total, f"{probe.value_name}/error_{len(model.graph.outputs)}")


def _publish(
    model: ir.Model, node: ir.Node, name: str, dtype: ir.DataType = ir.DataType.FLOAT
) -> str:
    model.graph.append(node)
    output = node.outputs[0]
    output.name = name
    output.dtype = dtype
    model.graph.outputs.append(output)
    return name
