"""Stored weights: what a graph computes with them is what their codes stand for."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.graph.blocks import (
    BlockedWeight,
    block_of,
    block_sizes,
    half_scales_,
    half_weights_,
    insert_weights_,
)
from vitdeploy.graph.qdq import quantize_weight
from vitdeploy.targets.onnx import runner_from_model

EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}


def product(inputs: int = 64, outputs: int = 6) -> tuple[ir.Model, np.ndarray]:
    """x (rows, inputs) times a constant weight, opset 21."""
    weight = np.random.default_rng(0).standard_normal((inputs, outputs)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], "product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(weight, "weight")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(proto), weight


def blocked(zero_points: bool = False) -> BlockedWeight:
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, (64, 6)).astype(np.int8)
    scales = rng.random((4, 6)).astype(np.float16).astype(np.float32)
    zeros = rng.integers(-8, 8, (4, 6)).astype(np.int8) if zero_points else None
    return BlockedWeight(codes, scales, zeros)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    with runner_from_model(model, settings=EXACT) as runner:
        return runner({"x": x})["y"]


@pytest.mark.parametrize("zero_points", [False, True])
def test_the_graph_computes_what_the_codes_stand_for(zero_points: bool, tmp_path: Path):
    model, _ = product()
    weight = blocked(zero_points)
    insert_weights_(model, {"product": weight})
    x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    # float32 sums of 64 terms
    np.testing.assert_allclose(run(model, x), x @ weight.dequantized(), rtol=1e-4, atol=1e-4)
    assert block_sizes(model) == (16,)
    ir.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_two_codes_share_a_byte_and_the_float_weight_is_gone(tmp_path: Path):
    model, _ = product()
    insert_weights_(model, {"product": blocked()})
    ir.save(model, tmp_path / "model.onnx")
    stored = {t.name: t for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert set(stored) == {"weight_int4", "weight_scale"}
    assert stored["weight_int4"].data_type == TensorProto.INT4
    assert len(stored["weight_int4"].raw_data) == 64 * 6 // 2


@pytest.mark.parametrize("has_half_scales", [False, True])
def test_onnxruntime_fuses_the_weight_into_the_product(has_half_scales: bool, tmp_path: Path):
    import onnxruntime as ort

    model, _ = product()
    insert_weights_(model, {"product": blocked()})
    if has_half_scales:
        half_scales_(model)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert [node.op_type for node in nodes] == ["MatMulNBits"]


@pytest.mark.parametrize("zero_points", [False, True])
def test_half_scales_change_the_file_and_not_one_bit(zero_points: bool, tmp_path: Path):
    model, _ = product()
    insert_weights_(model, {"product": blocked(zero_points)})
    x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    before = run(model, x)
    assert half_scales_(model) == 1
    assert half_scales_(model) == 0
    assert block_sizes(model) == (16,)
    np.testing.assert_array_equal(run(model, x), before)
    ir.save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    stored = {t.name: t.data_type for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert stored["weight_scale_half"] == TensorProto.FLOAT16
    assert TensorProto.FLOAT not in stored.values()


def test_scales_that_fp16_does_not_hold_stay_as_they_are():
    model, _ = product()
    weight = blocked()
    insert_weights_(model, {"product": BlockedWeight(weight.codes, weight.scales / np.float32(3))})
    assert half_scales_(model) == 0
    assert half_weights_(model) == 0


def test_other_products_become_int8_by_output_channel():
    model, weight = product()
    insert_weights_(model, {"product": quantize_weight(weight, 1)})
    x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    # A step of 1/127 of a channel's largest weight
    np.testing.assert_allclose(run(model, x), x @ weight, atol=0.4)
    assert block_sizes(model) == ()


def test_weights_dequantised_to_fp16_differ_by_its_rounding_alone():
    model, _ = product()
    insert_weights_(model, {"product": blocked()})
    x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    before = run(model, x)
    assert half_weights_(model) == 1
    types = {v.name: v.dtype for v in model.graph.initializers.values()}
    assert types["weight_scale_half"] == ir.DataType.FLOAT16
    # FP16 of a code times a scale has 11 bits
    np.testing.assert_allclose(run(model, x), before, rtol=2e-2, atol=2e-2)
    assert half_weights_(model) == 0


@pytest.mark.parametrize(
    ("channels", "wanted", "found"),
    [(192, 64, 64), (96, 64, 32), (48, 128, 16), (256, 128, 128), (40, 64, None), (8, 64, None)],
)
def test_the_block_divides_the_channels(channels: int, wanted: int, found: int | None):
    assert block_of(channels, wanted) == found
