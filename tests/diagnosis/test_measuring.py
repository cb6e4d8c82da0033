"""Errors, folds and extremes against figures computed by hand in numpy."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.diagnosis.test_pairing import OPTIONS
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.diagnosis.extremes import measure_extremes, outlier_ratio
from vitdeploy.diagnosis.measuring import decibels, measure_errors, measure_maps
from vitdeploy.diagnosis.pairing import Pair, pair_models
from vitdeploy.diagnosis.switching import (
    artefact_with_switches,
    fp32_with_switches,
    measure_noise,
)
from vitdeploy.errors import DataError
from vitdeploy.graph.folds import layernorm_scale
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.graph.sites import array_of
from vitdeploy.graph.surgery import constant_of
from vitdeploy.targets.onnx import runner_from_model

SCHEME = QuantScheme()


def quantized(model: ir.Model, pixels: np.ndarray) -> ir.Model:
    return quantize_int8(model, SCHEME, lambda: [{"pixel_values": pixels}], OPTIONS).model


def values_of(model: ir.Model, names: list[str], pixels: np.ndarray) -> dict[str, np.ndarray]:
    copy = model.clone()
    found = {str(v.name): v for node in copy.graph for v in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(found[name] for name in names)
    with runner_from_model(copy, settings={"session.disable_quant_qdq": "1"}) as runner:
        return runner({"pixel_values": pixels})


def in_batches(pixels: np.ndarray):
    return lambda: ({"pixel_values": pixels[i : i + 2]} for i in range(0, len(pixels), 2))


def folded(model: ir.Model) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """The graph with its LayerNorm's channels scaled and shifted, and both vectors."""
    copy = model.clone()
    rng = np.random.default_rng(3)
    scale, shift = rng.uniform(0.2, 5.0, 8), rng.standard_normal(8)
    layernorm_scale.apply_(copy, layernorm_scale.find(copy)[0], scale, shift)
    return copy, scale, shift


def by_numpy(model: ir.Model, artefact: ir.Model, pixels: np.ndarray) -> tuple[float, float]:
    """SQNR in dB that fc2 makes of the FP32 activation, and the share of it that is clipped."""
    values = values_of(model, ["hidden_2", "mlp_1"], pixels)
    nodes = {node.name: node for node in artefact.graph}
    activation, weight = (value.producer() for value in nodes["fc2"].inputs)
    scale, zero = (constant_of(v).astype(np.float64) for v in activation.inputs[1:3])
    codes = np.rint(values["hidden_2"] / scale) + zero
    rounded = (np.clip(codes, 0, 255) - zero) * scale
    own = constant_of(weight.inputs[0]) * constant_of(weight.inputs[1])[None, :]
    result = rounded @ own + array_of(model.graph.initializers["fc2.bias"])
    signal = np.square(values["mlp_1"].astype(np.float64)).sum()
    error = np.square(result - values["mlp_1"]).sum()
    return 10 * np.log10(signal / error), 100 * float(((codes < 0) | (codes > 255)).mean())


def test_the_error_made_is_that_of_the_product_alone(vit_graph: ir.Model, pixels: np.ndarray):
    artefact = quantized(vit_graph, pixels)
    expected, clipped = by_numpy(vit_graph, artefact, pixels * 1.5)
    assert clipped > 0  # the images are brighter than those of the calibration
    batches = in_batches(pixels * 1.5)
    maps = measure_maps(pair_models(vit_graph, artefact, quantized=False), batches)
    errors = measure_errors(pair_models(vit_graph, artefact), maps, batches)
    # float32 sums against float64
    assert errors.made_db["fc2"] == pytest.approx(expected, abs=0.01)
    assert errors.clipped_percent["fc2"] == pytest.approx(clipped, abs=0.01)
    assert errors.images == len(pixels)


def test_the_error_inherited_is_that_of_the_whole_artefact(vit_graph: ir.Model, pixels: np.ndarray):
    artefact = quantized(vit_graph, pixels)
    maps = measure_maps(pair_models(vit_graph, artefact, quantized=False), in_batches(pixels))
    errors = measure_errors(pair_models(vit_graph, artefact), maps, in_batches(pixels))
    names = ["mlp_1", "logits"]
    before = values_of(vit_graph, names, pixels)
    after = values_of(artefact, names, pixels)
    for name, seen in (("mlp_1", errors.inherited_db["fc2"]), ("logits", errors.output_db)):
        signal = np.square(before[name].astype(np.float64)).sum()
        error = np.square((after[name] - before[name]).astype(np.float64)).sum()
        assert seen == pytest.approx(10 * np.log10(signal / error), abs=0.01)


def test_folds_are_recovered_and_are_no_error(vit_graph: ir.Model, pixels: np.ndarray):
    changed, scale, shift = folded(vit_graph)
    artefact = quantized(changed, pixels)
    pair = pair_models(vit_graph, artefact, quantized=False)
    maps = measure_maps(pair, in_batches(pixels))
    # x' = (x - shift) / scale, from the norm's float32 parameters
    np.testing.assert_allclose(maps.inputs["fc1"].factor, 1 / scale, rtol=1e-5)
    np.testing.assert_allclose(maps.inputs["fc1"].offset, -shift / scale, atol=1e-4)
    errors = measure_errors(pair_models(vit_graph, artefact), maps, in_batches(pixels))
    # scales drawn at random cost bits; a map that was wrong would leave 0 to 10 dB
    assert errors.made_db["fc1"] > 25


def test_a_map_that_no_norm_tells_is_fitted(vit_graph: ir.Model, pixels: np.ndarray):
    changed, scale, shift = folded(vit_graph)
    artefact = quantized(changed, pixels)
    pair = pair_models(vit_graph, artefact, quantized=False)
    untold = Pair(
        pair.model,
        tuple(type(s)(**{**vars(s), "norms": None}) for s in pair.sites),
        pair.blocks,
        pair.norms,
        pair.outputs,
    )
    maps = measure_maps(untold, in_batches(pixels))
    # the patch convolution before it has weights rounded to 8 bits
    np.testing.assert_allclose(maps.inputs["fc1"].factor, 1 / scale, rtol=0.02)
    np.testing.assert_allclose(maps.inputs["fc1"].offset, -shift / scale, atol=0.05)


def test_noise_alone_adds_up_to_that_of_all(vit_graph: ir.Model, pixels: np.ndarray):
    artefact = quantized(vit_graph, pixels)
    batches = in_batches(pixels)
    maps = measure_maps(pair_models(vit_graph, artefact, quantized=False), batches)
    names = ["patch", "fc1", "fc2", "head"]
    fp32 = fp32_with_switches(pair_models(vit_graph, artefact), maps, batches)
    switched = artefact_with_switches(pair_models(vit_graph, artefact), maps, batches)
    errors = measure_errors(pair_models(vit_graph, artefact), maps, batches)
    # none and all switched: FP32 against itself, and the artefact from both sides
    assert fp32.output_db([]) > 120
    assert fp32.output_db(names) == pytest.approx(errors.output_db, abs=0.1)
    assert switched.output_db([]) == pytest.approx(errors.output_db, abs=0.1)
    assert switched.output_db(names) > errors.output_db + 15
    noise = measure_noise(fp32, names, 60.0)
    total = 10 * np.log10(1 / sum(noise.alone.values()))
    # errors of four products are nearly uncorrelated
    assert total == pytest.approx(errors.output_db, abs=2)
    assert sum(noise.share_percent(name) for name in names) == pytest.approx(100)


def test_without_time_nothing_is_measured(vit_graph: ir.Model, pixels: np.ndarray):
    artefact = quantized(vit_graph, pixels)
    batches = in_batches(pixels)
    maps = measure_maps(pair_models(vit_graph, artefact, quantized=False), batches)
    fp32 = fp32_with_switches(pair_models(vit_graph, artefact), maps, batches)
    noise = measure_noise(fp32, ["fc1", "fc2"], 0.0)
    assert noise.share_percent("fc1") is None
    assert "2 runs" in str(noise.reason)


def test_outliers_and_fp16_are_measured(vit_graph: ir.Model, pixels: np.ndarray):
    changed, _, _ = folded(vit_graph)
    artefact = quantized(changed, pixels)
    extremes = measure_extremes(pair_models(vit_graph, artefact), in_batches(pixels))
    magnitudes = np.abs(values_of(vit_graph, ["normed"], pixels)["normed"]).max(axis=(0, 1))
    expected = magnitudes.max() / np.median(magnitudes)
    assert extremes.norms[0].before == pytest.approx(expected, rel=1e-5)
    after = np.abs(values_of(artefact, ["normed"], pixels)["normed"]).max(axis=(0, 1))
    assert extremes.norms[0].after == pytest.approx(after.max() / np.median(after), rel=1e-5)
    assert extremes.fp16 == ()


def test_a_sum_of_squares_overflows_before_the_value_does(vit_graph: ir.Model, pixels: np.ndarray):
    loud = pixels * 100
    artefact = quantized(vit_graph, loud)
    rows = measure_extremes(pair_models(vit_graph, artefact), in_batches(loud)).fp16
    stream = values_of(vit_graph, ["stream"], loud)["stream"].astype(np.float64)
    expected = np.square(stream - stream.mean(-1, keepdims=True)).sum(-1).max()
    assert (rows[0].name, rows[0].quantity, rows[0].overflows) == ("norm", "sum of squares", True)
    assert rows[0].max_abs == pytest.approx(expected, rel=1e-4)
    assert np.abs(stream).max() < 65504


@pytest.mark.parametrize(
    ("magnitudes", "expected"),
    [([1, 1, 1], 1), ([1, 2, 30], 15), ([0, 0, 0], 0), ([0, 0, 1], np.inf)],
)
def test_outlier_ratio(magnitudes: list[float], expected: float):
    assert outlier_ratio(np.array(magnitudes, dtype=float)) == expected


def test_decibels():
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) == 200
    assert decibels(0.0, 1.0) < -1000


def test_no_images_are_refused(vit_graph: ir.Model, pixels: np.ndarray):
    pair = pair_models(vit_graph, quantized(vit_graph, pixels), quantized=False)
    with pytest.raises(DataError, match="no image"):
        measure_maps(pair, list)
