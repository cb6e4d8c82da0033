"""Biases for INT8 convolutions that several nodes read, which OpenVINO computes wrongly without."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.graph.conv_bias import bias_shared_convs_
from vitdeploy.openvino_core import openvino_core
from vitdeploy.targets.onnx import runner_from_model

IMAGES = {"x": np.random.default_rng(1).standard_normal((2, 8, 16, 16)).astype("f4")}
READERS = {
    "average pool": "y1 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (c)",
    "max pool": "y1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)",
    "relu": "y1 = Relu (c)",
    "global pool": "y1 = GlobalAveragePool (c)",
    "transpose": "y1 = Transpose <perm = [0, 2, 3, 1]> (c)",
}


def model_with(reader: str, bias: str = "", other: str = "y2 = Gelu (c)") -> ir.Model:
    inputs = f"d, w{', ' + bias if bias else ''}"
    text = f"""<ir_version: 9, opset_import: ["" : 20]> g (float[b, 8, 16, 16] x)
      => (float[b, m, n, o] y1, float[b, 16, 16, 16] y2) {{
        q = QuantizeLinear (x, xs, xz) d = DequantizeLinear (q, xs, xz)
        w = DequantizeLinear <axis = 0> (codes, ws, wz)
        c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({inputs})
        {reader} {other} }}"""
    proto = onnx.parser.parse_model(text)
    draw = np.random.default_rng(0)
    constants = {
        "codes": draw.integers(-127, 127, (16, 8, 3, 3)).astype("i1"),
        "ws": (draw.random(16) * 0.01 + 0.002).astype("f4"),
        "wz": np.zeros(16, "i1"),
        "xs": np.float32(0.02),
        "xz": np.uint8(100),
        "zeros": np.zeros(16, "f4"),
        "drawn": draw.standard_normal(16).astype("f4"),
    }
    for name in ("codes", "ws", "wz", "xs", "xz", *([bias] if bias else [])):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(constants[name], name))
    return ir.from_proto(proto)


@pytest.mark.parametrize("bias", ["", "zeros"])
@pytest.mark.parametrize("reader", READERS)
def test_openvino_computes_what_the_graph_says(reader, bias):
    model = model_with(READERS[reader], bias)
    with runner_from_model(model, settings={"session.disable_quant_qdq": "1"}) as runner:
        expected = runner(IMAGES)
    assert bias_shared_convs_(model) == 1
    assert bias_shared_convs_(model) == 0
    core = openvino_core()
    read = core.read_model(ir.to_proto(model).SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = compiled(IMAGES)
    for name, values in expected.items():
        assert np.abs(seen[name] - values).max() <= 1e-5 * np.abs(values).max()


def test_the_bias_changes_nothing():
    model = model_with(READERS["relu"])
    with runner_from_model(model, settings={"session.disable_quant_qdq": "1"}) as runner:
        expected = runner(IMAGES)
    bias_shared_convs_(model)
    with runner_from_model(model, settings={"session.disable_quant_qdq": "1"}) as runner:
        seen = runner(IMAGES)
    assert all(np.array_equal(seen[name], values) for name, values in expected.items())


def test_others_are_left_alone():
    assert bias_shared_convs_(model_with(READERS["relu"], "drawn")) == 0
    assert bias_shared_convs_(model_with(READERS["relu"], other="y2 = Gelu (d)")) == 0
