import numpy as np
import onnx_ir as ir
import pytest

from vitdeploy.compress.calibrate import (
    Probe,
    RangeCandidate,
    collect_range_errors,
    collect_statistics,
    held_out,
)
from vitdeploy.errors import CompressionError
from vitdeploy.graph.qdq import ActivationRange, QuantScheme
from vitdeploy.targets.onnx import runner_from_model

NORMED = Probe("normed", -1, 3)


def batches_of(pixels: np.ndarray, size: int):
    return lambda: (
        {"pixel_values": pixels[start : start + size]} for start in range(0, len(pixels), size)
    )


def activation(model: ir.Model, name: str, pixels: np.ndarray) -> np.ndarray:
    copy = model.clone()
    value = next(o for n in copy.graph for o in n.outputs if o.name == name)
    copy.graph.outputs.append(value)
    with runner_from_model(copy) as runner:
        return runner({"pixel_values": pixels})[name]


def test_streamed_statistics_equal_those_of_all_activations(
    vit_graph: ir.Model, pixels: np.ndarray
):
    stored = activation(vit_graph, "normed", pixels)
    streamed = collect_statistics(vit_graph, [NORMED], batches_of(pixels, 2))["normed"]
    # Statistics are taken without ONNX Runtime's fusions, which round the last bit otherwise.
    np.testing.assert_allclose(streamed.low, stored.min((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(streamed.high, stored.max((0, 1)), rtol=1e-6)
    # Summed in another order.
    np.testing.assert_allclose(streamed.square, np.square(stored).mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(streamed.mean, stored.mean((0, 1)), rtol=1e-4, atol=1e-5)
    assert streamed.positions == 16


def test_batch_size_does_not_matter(vit_graph: ir.Model, pixels: np.ndarray):
    one = collect_statistics(vit_graph, [NORMED], batches_of(pixels, 1))["normed"]
    four = collect_statistics(vit_graph, [NORMED], batches_of(pixels, 4))["normed"]
    np.testing.assert_array_equal(one.low, four.low)
    np.testing.assert_allclose(one.square, four.square, rtol=1e-5)


def test_a_half_is_of_every_other_batch_and_the_rest_is_held_out(
    vit_graph: ir.Model, pixels: np.ndarray
):
    batches = batches_of(pixels[:3], 1)
    half = collect_statistics(vit_graph, [NORMED], batches)["normed"].half
    expected = collect_statistics(vit_graph, [NORMED], batches_of(pixels[[0, 2]], 2))["normed"]
    assert half is not None
    np.testing.assert_array_equal(half.low, expected.low)
    np.testing.assert_array_equal(half.high, expected.high)
    np.testing.assert_allclose(half.square, expected.square, rtol=1e-5)
    assert half.positions == expected.positions == 16
    (feeds,) = held_out(batches)()
    np.testing.assert_array_equal(feeds["pixel_values"], pixels[1:2])
    # one batch is all there is
    alone = batches_of(pixels[:2], 2)
    assert collect_statistics(vit_graph, [NORMED], alone)["normed"].half is None
    (feeds,) = held_out(alone)()
    np.testing.assert_array_equal(feeds["pixel_values"], pixels[:2])


def test_range_errors_equal_a_computation_by_hand(vit_graph: ir.Model, pixels: np.ndarray):
    stored = activation(vit_graph, "normed", pixels).astype(np.float64)
    factor, offset = np.linspace(0.5, 2.0, 8), np.linspace(-1.0, 1.0, 8)
    candidates = [
        RangeCandidate(ActivationRange(-4.0, 4.0)),
        RangeCandidate(ActivationRange(-1.0, 1.0)),
        RangeCandidate(ActivationRange(-2.0, 3.0), scale=factor, shift=offset),
    ]
    errors = collect_range_errors(
        vit_graph, {NORMED: candidates}, QuantScheme(), batches_of(pixels, 2)
    )["normed"]
    for row, candidate in zip(errors, candidates, strict=True):
        scale, zero = candidate.interval.parameters(QuantScheme())
        folds = candidate.scale is not None
        by, minus = (factor, offset) if folds else (1.0, 0.0)
        folded = (stored - minus) / by
        codes = np.clip(np.rint(folded / scale) + int(zero), 0, 255)
        expected = np.square(((codes - int(zero)) * float(scale) - folded) * by).mean((0, 1))
        # float32 sums in the graph; values at .5 may round to either side.
        np.testing.assert_allclose(row, expected, rtol=2e-3)


def test_refuses_no_images(vit_graph: ir.Model):
    with pytest.raises(CompressionError, match="no image"):
        collect_statistics(vit_graph, [NORMED], lambda: iter(()))


def test_refuses_nan_activations(vit_graph: ir.Model, pixels: np.ndarray):
    pixels[0, 0, 0, 0] = np.nan
    with pytest.raises(CompressionError, match="'normed' holds NaN"):
        collect_statistics(vit_graph, [NORMED], batches_of(pixels, 2))


def test_the_graph_is_not_changed(vit_graph: ir.Model, pixels: np.ndarray):
    before = ir.to_proto(vit_graph).SerializeToString(deterministic=True)
    collect_statistics(vit_graph, [NORMED], batches_of(pixels, 2))
    assert ir.to_proto(vit_graph).SerializeToString(deterministic=True) == before
