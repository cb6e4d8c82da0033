import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.conftest import tiny_vit_graph
from vitdeploy.graph.gemm import matmul_from_gemm_
from vitdeploy.graph.qdq import (
    ActivationRange,
    QuantScheme,
    insert_qdq_,
    quantize_weight,
)
from vitdeploy.graph.sites import array_of, find_weight_sites
from vitdeploy.targets.onnx import runner_from_model

WIDE = ActivationRange(-8.0, 8.0)


def ranges_for(model: ir.Model) -> dict[str, ActivationRange]:
    names = {str(s.activation.name) for s in find_weight_sites(model)}
    names |= {str(s.node.outputs[0].name) for s in find_weight_sites(model)}
    return dict.fromkeys(names, WIDE)


def run(model: ir.Model, pixels: np.ndarray) -> np.ndarray:
    with runner_from_model(model) as runner:
        return runner({"pixel_values": pixels})["logits"]


def test_weights_are_within_half_a_step_per_channel():
    weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    weight[:, 3] *= 1000.0
    result = quantize_weight(weight, output_axis=1)
    error = np.abs(result.codes * result.scales - weight)
    # Half a step, plus float32 rounding of the product.
    assert (error <= 0.5001 * result.scales).all()
    assert result.codes.min() >= -127


def test_seven_bits_keep_codes_within_63():
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    assert np.abs(quantize_weight(weight, 0, bits=7).codes).max() == 63


def test_a_channel_of_zeros_stays_zero_and_nan_is_refused():
    weight = np.zeros((4, 4), np.float32)
    assert not quantize_weight(weight, 0).codes.any()
    weight[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        quantize_weight(weight, 0)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 2.0), (1.0, 2.0), (-7.0, -1.0)])
def test_zero_is_exact_and_the_ends_are_reached(low: float, high: float):
    scale, zero_point = ActivationRange(low, high).parameters(QuantScheme())
    codes = np.arange(256)
    values = (codes - int(zero_point)) * float(scale)
    assert 0.0 in values
    assert values[0] <= min(low, 0) + scale
    assert values[-1] >= max(high, 0) - scale


def test_symmetric_scheme_has_zero_point_zero():
    scheme = QuantScheme(activation=ir.DataType.INT8, symmetric_activations=True)
    scale, zero_point = ActivationRange(-1.0, 3.0).parameters(scheme)
    assert int(zero_point) == 0
    assert zero_point.dtype == np.int8
    assert scale == pytest.approx(3.0 / 127)


def test_structure_quantises_products_only(vit_graph: ir.Model):
    sites = find_weight_sites(vit_graph)
    assert [site.name for site in sites] == ["patch", "fc1", "fc2", "head"]
    insert_qdq_(vit_graph, sites, ranges_for(vit_graph), QuantScheme())
    for node in vit_graph.graph:
        producers = [v.producer() for v in node.inputs if v is not None]
        fed_by_dq = [p.op_type == "DequantizeLinear" for p in producers if p is not None]
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            assert fed_by_dq == [True, True]
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert not any(fed_by_dq), f"{node.name} must stay float"
    onnx.checker.check_model(ir.to_proto(vit_graph), full_check=True)


def test_output_is_close_and_not_equal(vit_graph: ir.Model, pixels: np.ndarray):
    expected = run(vit_graph, pixels)
    insert_qdq_(vit_graph, find_weight_sites(vit_graph), ranges_for(vit_graph), QuantScheme())
    seen = run(vit_graph, pixels)
    assert not np.array_equal(seen, expected)
    # A step is 16 / 255 = 0.06 per activation; the logits' RMS is about 1.
    assert np.abs(seen - expected).max() < 0.15


def test_against_an_independent_fake_quantisation(vit_graph: ir.Model):
    """One product computed by hand in NumPy from the same codes."""
    site = next(s for s in find_weight_sites(vit_graph) if s.name == "fc1")
    weight = array_of(site.weight).copy()
    insert_qdq_(vit_graph, [site], {str(site.activation.name): WIDE}, QuantScheme())
    vit_graph.graph.outputs.append(site.activation)
    vit_graph.graph.outputs.append(site.node.outputs[0])
    pixels = np.random.default_rng(2).standard_normal((2, 3, 16, 16)).astype(np.float32)
    with runner_from_model(vit_graph, settings={"session.disable_quant_qdq": "1"}) as runner:
        results = runner({"pixel_values": pixels})
    x = results[str(site.activation.name)].astype(np.float64)
    scale = np.float32(16.0 / 255.0)
    x_hat = (np.clip(np.rint(x / scale) + 128, 0, 255) - 128) * scale
    steps = np.abs(weight).max(axis=0) / 127
    w_hat = np.rint(weight / steps) * steps
    np.testing.assert_allclose(
        results[str(site.node.outputs[0].name)], x_hat @ w_hat, rtol=1e-4, atol=1e-5
    )


def test_conv_outputs_are_quantised_where_the_scheme_says(vit_graph: ir.Model):
    scheme = QuantScheme(quantizes_conv_outputs=True)
    insert_qdq_(vit_graph, find_weight_sites(vit_graph), ranges_for(vit_graph), scheme)
    conv = next(node for node in vit_graph.graph if node.op_type == "Conv")
    assert [use.node.op_type for use in conv.outputs[0].uses()] == ["QuantizeLinear"]


def test_a_missing_range_is_an_error(vit_graph: ir.Model):
    with pytest.raises(KeyError):
        insert_qdq_(vit_graph, find_weight_sites(vit_graph), {}, QuantScheme())


def test_gemm_becomes_matmul_and_add_with_the_same_output(pixels: np.ndarray):
    model = tiny_vit_graph()
    expected = run(model, pixels)
    assert matmul_from_gemm_(model) == 1
    assert not any(node.op_type == "Gemm" for node in model.graph)
    # The same sums in another order.
    np.testing.assert_allclose(run(model, pixels), expected, rtol=1e-5, atol=1e-6)


def test_gemm_with_transposed_activation_is_left_alone():
    model = tiny_vit_graph()
    node = next(node for node in model.graph if node.op_type == "Gemm")
    node.attributes["transA"] = ir.AttrInt64("transA", 1)
    assert matmul_from_gemm_(model) == 0
    assert [site.name for site in find_weight_sites(model)] == ["patch", "fc1", "fc2"]
