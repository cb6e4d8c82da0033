"""The FP16 graph: FP32 at its edges and in LayerNorm, FP16 elsewhere, the same function."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graph.exactness import canonical
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.graph.half import FLOAT32_OPERATORS, half_array, half_from_model
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.recipe import Int8Section
from vitdeploy.targets.onnx import runner_from_model


@pytest.fixture
def half(vit_graph: ir.Model) -> ir.Model:
    return half_from_model(vit_graph)


def run(model: ir.Model, pixels: np.ndarray) -> np.ndarray:
    with runner_from_model(model) as runner:
        return runner({"pixel_values": pixels})["logits"]


def test_function_is_kept_to_half_precision(
    vit_graph: ir.Model, half: ir.Model, pixels: np.ndarray
):
    expected = run(vit_graph, pixels)
    # 11 bits of mantissa are 5e-4 of each value; six layers add to a few of that
    np.testing.assert_allclose(run(half, pixels), expected, atol=5e-3 * np.abs(expected).max())


def test_weights_halve(vit_graph: ir.Model, half: ir.Model):
    for name in ("fc1.weight", "patch.weight", "head.weight"):
        assert half.graph.initializers[name].dtype == ir.DataType.FLOAT16
        assert vit_graph.graph.initializers[name].dtype == ir.DataType.FLOAT


def test_inputs_and_outputs_stay_float32(half: ir.Model):
    for value in (*half.graph.inputs, *half.graph.outputs):
        assert value.dtype == ir.DataType.FLOAT
    assert [value.name for value in half.graph.inputs] == ["pixel_values"]
    assert [value.name for value in half.graph.outputs] == ["logits"]
    assert half.graph.inputs[0].shape is not None
    assert str(half.graph.inputs[0].shape[0]) == "batch"


def test_what_overflows_in_half_stays_float32(half: ir.Model):
    norm = next(node for node in half.graph if node.op_type == "LayerNormalization")
    for value in norm.inputs[1:]:
        assert value is not None
        assert value.dtype == ir.DataType.FLOAT
    assert "LayerNormalization" in FLOAT32_OPERATORS


def test_an_activation_past_half_s_range_survives_layernorm(vit_graph: ir.Model):
    """Squares of 400 exceed 65504; in FP16 the norm would be infinite."""
    bias = vit_graph.graph.initializers["patch.bias"]
    large = np.array([400, -400, 300, 0, 200, -100, 50, 0], dtype=np.float32)
    bias.const_value = ir.tensor(large, name="patch.bias")
    pixels = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    expected = run(vit_graph, pixels)
    result = run(half_from_model(vit_graph), pixels)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result, expected, atol=1e-2 * np.abs(expected).max())


def test_the_graph_given_is_not_changed(vit_graph: ir.Model):
    before = ir.to_proto(vit_graph).SerializeToString()
    half_from_model(vit_graph)
    assert ir.to_proto(vit_graph).SerializeToString() == before


def test_two_conversions_give_the_same_bytes(vit_graph: ir.Model):
    first, second = (ir.to_proto(half_from_model(vit_graph)) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


@pytest.mark.parametrize("family", ["vit", "swin", "swinv2", "fastvit", "eva02", "hf_siglip"])
def test_every_family_keeps_its_function_and_its_types_agree(family: str):
    model = canonical(family)
    converted = half_from_model(model)
    onnx.checker.check_model(ir.to_proto(converted), full_check=True)
    size = [2, *model.graph.inputs[0].shape[1:]]
    pixels = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    expected = run(model, pixels)
    # 11 bits of mantissa over a dozen layers
    np.testing.assert_allclose(run(converted, pixels), expected, atol=1e-2 * np.abs(expected).max())


def test_softmax_computes_in_float32_between_casts():
    converted = half_from_model(canonical("vit"))
    for node in converted.graph:
        if node.op_type == "Softmax":
            assert node.inputs[0].producer().op_type == "Cast"
            assert node.outputs[0].dtype == ir.DataType.FLOAT


def test_a_named_node_stays_float32(vit_graph: ir.Model):
    converted = half_from_model(vit_graph, ["fc1"])
    node = next(node for node in converted.graph if node.name == "fc1")
    assert {value.dtype for value in (*node.inputs, *node.outputs)} == {ir.DataType.FLOAT}
    add = next(node for node in converted.graph if node.name == "fc1_bias")
    assert {value.dtype for value in add.inputs} == {ir.DataType.FLOAT16}


def test_a_float32_product_reads_its_dequantised_operands_without_a_cast(
    vit_graph: ir.Model, pixels: np.ndarray
):
    scheme = QuantScheme(activation=ir.DataType.INT8, symmetric_activations=True)
    quantized = quantize_int8(
        vit_graph,
        scheme,
        lambda: iter([{"pixel_values": pixels}]),
        Int8Section(placement="all", folds="off", rounding="nearest"),
    ).model
    converted = half_from_model(quantized, ["fc1"])
    node = next(node for node in converted.graph if node.name == "fc1")
    makers = [value.producer() for value in node.inputs]
    assert [maker.op_type for maker in makers] == ["DequantizeLinear"] * 2
    assert {maker.inputs[1].dtype for maker in makers} == {ir.DataType.FLOAT}
    other = next(node for node in converted.graph if node.name == "fc2")
    assert {v.producer().inputs[1].dtype for v in other.inputs} == {ir.DataType.FLOAT16}


def test_constants_beyond_half_are_clipped_and_infinities_kept():
    found = half_array(np.array([1e9, -1e9, np.inf, -np.inf, 0.5], np.float32))
    np.testing.assert_array_equal(
        found, np.array([65504, -65504, np.inf, -np.inf, 0.5], np.float16)
    )
