"""Masks by key are widened to the heads, and OpenVINO's bf16 is right then."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.cpu import cpu_has
from vitdeploy.graph.key_mask import widen_key_masks_
from vitdeploy.graph.surgery import constant_of
from vitdeploy.openvino_core import openvino_core

KEYS = 40
FEEDS = {
    name: np.random.default_rng(seed).standard_normal(shape).astype("f4")
    for seed, (name, shape) in enumerate(
        {"q": (1, 4, KEYS, 16), "k": (1, 4, 16, KEYS), "v": (1, 4, KEYS, 16)}.items()
    )
}


def attention(mask: tuple[int, ...], heads: int | str = 4) -> ir.Model:
    text = f"""<ir_version: 9, opset_import: ["" : 20]> g
      (float[1, {heads}, {KEYS}, 16] q, float[1, {heads}, 16, {KEYS}] k,
       float[1, {heads}, {KEYS}, 16] v)
      => (float[1, {heads}, {KEYS}, 16] y) {{
        s = MatMul (q, k) t = Add (s, mask) p = Softmax <axis = -1> (t) y = MatMul (p, v) }}"""
    proto = onnx.parser.parse_model(text)
    values = np.zeros(mask, "f4")
    values[..., -10:] = -1e4
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "mask"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model, hint: str = "f32") -> np.ndarray:
    core = openvino_core()
    read = core.read_model(ir.to_proto(model).SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return np.array(compiled(FEEDS)[0])


@pytest.mark.parametrize("shape", [(1, 1, 1, KEYS), (1, KEYS), (KEYS,)])
def test_a_mask_by_key_is_widened_and_computes_the_same(shape):
    model = attention(shape)
    before = run(model)
    assert widen_key_masks_(model) == 1
    (add,) = (node for node in model.graph if node.op_type == "Add")
    mask = constant_of(add.inputs[1])
    assert mask is not None
    assert mask.shape == (1, 4, 1, KEYS)
    # The same float operations, so the same bits but for the order of a sum.
    assert np.abs(run(model) - before).max() < 1e-6
    assert widen_key_masks_(model) == 0


@pytest.mark.skipif(not cpu_has("bf16"), reason="this CPU has no bf16")
def test_openvino_in_bf16_is_right_then():
    model = attention((1, 1, 1, KEYS))
    exact = run(model)
    widen_key_masks_(model)
    # bf16 has 8 bits: values around 1 are off by some 2^-8.
    assert np.abs(run(model, "bf16") - exact).max() < 0.05


@pytest.mark.parametrize(
    ("shape", "heads"),
    [((1, 4, 1, KEYS), 4), ((1, 1, KEYS, KEYS), 4), ((1, 1, 1, KEYS), 1), ((1, 1, 1, 1), 4)],
)
def test_other_biases_are_left_alone(shape, heads):
    model = attention(shape, heads)
    before = ir.to_proto(model).SerializeToString()
    assert widen_key_masks_(model) == 0
    assert ir.to_proto(model).SerializeToString() == before
