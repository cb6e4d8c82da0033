"""round_scales_: scales of FP16, the same codes, nothing else changed."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.graph.half_scales import SMALLEST_HALF, round_scales_
from vitdeploy.targets.onnx import runner_from_model


def quantized_product(scales: np.ndarray, activation_scale: float = 0.0123) -> ir.Model:
    rng = np.random.default_rng(0)
    constants = {
        "x_scale": np.float32(activation_scale),
        "x_zero": np.int8(0),
        "codes": rng.integers(-127, 128, (8, len(scales))).astype(np.int8),
        "scales": scales.astype(np.float32),
        "zeros": np.zeros(len(scales), np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], "w", axis=1),
        helper.make_node("MatMul", ["d", "w"], ["y"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, len(scales)])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(proto)


def array(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


def test_scales_become_numbers_of_fp16_and_codes_stay():
    model = quantized_product(np.array([0.1, 0.0333, 3e-4]))
    codes = array(model, "codes")
    assert round_scales_(model) == 2
    for name in ("x_scale", "scales"):
        scales = array(model, name)
        assert scales.dtype == np.float32
        np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(array(model, "codes"), codes)


def test_the_function_changes_by_no_more_than_fp16_rounding():
    model = quantized_product(np.array([0.1, 0.0333, 3e-4]))
    x = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    with runner_from_model(model) as runner:
        before = runner({"x": x})["y"]
    round_scales_(model)
    with runner_from_model(model) as runner:
        after = runner({"x": x})["y"]
    # Two scales, each off by 2**-11 at most, and an activation on the edge may take the next code.
    np.testing.assert_allclose(after, before, atol=2e-2 * np.abs(before).max(axis=0).max())


def test_a_scale_below_fp16_gets_its_least_number_and_new_codes():
    model = quantized_product(np.array([2e-9, 0.1]))
    weights = array(model, "codes")[:, 0] * 2e-9
    round_scales_(model)
    assert array(model, "scales")[0] == np.float32(SMALLEST_HALF)
    found = array(model, "codes")[:, 0] * float(SMALLEST_HALF)
    np.testing.assert_allclose(found, weights, atol=SMALLEST_HALF / 2)  # one rounding


def test_a_scale_above_fp16_is_left():
    model = quantized_product(np.array([0.125]), activation_scale=1e5)
    assert round_scales_(model) == 0
    assert array(model, "x_scale") == pytest.approx(1e5)


def test_a_second_run_changes_nothing():
    model = quantized_product(np.array([0.1, 3e-4]))
    round_scales_(model)
    assert round_scales_(model) == 0
