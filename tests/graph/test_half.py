"""The FP16 graph: FP32 at its edges and in LayerNorm, FP16 elsewhere, the same function."""

import numpy as np
import onnx_ir as ir
import pytest

from vitdeploy.graph.half import FLOAT32_OPERATORS, half_from_model
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
