"""One view of MatMul, Gemm and Conv: every edit does what it says, whatever the storage order."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graph import double
from vitdeploy.graph import linear as lin

FORMS = {
    "matmul": "y = MatMul (x, w)",
    "matmul bias": "h = MatMul (x, w) y = Add (h, b)",
    "matmul bias first": "h = MatMul (x, w) y = Add (b, h)",
    "gemm": "y = Gemm (x, w)",
    "gemm bias": "y = Gemm (x, w, b)",
    "gemm transposed": "y = Gemm <transB = 1> (x, wt, b)",
    "conv": "y = Conv (x, k)",
    "conv bias": "y = Conv (x, k, b)",
}


def _model(form, extra=""):
    shape = "[2, 4, 3, 3]" if "conv" in form else "[5, 4]"
    out = "[2, 6, 2, 2]" if "conv" in form else "[5, 6]"
    head = f'<ir_version: 9, opset_import: ["" : 20]> g (float{shape} x) => (float{out} y)'
    proto = onnx.parser.parse_model(f"{head} {{ {FORMS[form]} {extra} }}")
    draw = np.random.default_rng(0)
    arrays = {
        "w": draw.standard_normal((4, 6)),
        "wt": draw.standard_normal((6, 4)),
        "b": draw.standard_normal(6),
        "k": draw.standard_normal((6, 4, 2, 2)),
    }
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in arrays.items()
        if name in used
    )
    return ir.from_proto(proto)


def _input(model):
    shape = [int(dim) for dim in model.graph.inputs[0].shape]
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _channels(vector, model):
    return vector.reshape(-1, 1, 1) if len(model.graph.inputs[0].shape) == 4 else vector


@pytest.mark.parametrize("form", list(FORMS))
def test_edits_do_what_they_say(form):
    draw = np.random.default_rng(2)
    out, into = draw.uniform(0.5, 2, 6), draw.uniform(0.5, 2, 4)
    shift, bias = draw.standard_normal(4), draw.standard_normal(6)
    model = _model(form)
    (layer,) = lin.find_linears(model.graph)
    image, before = _input(model), double.run_ort(_model(form), _input(model))

    lin.scale_outputs_(model.graph, layer, out)
    expected = before * _channels(out, model)
    np.testing.assert_allclose(double.run_ort(model, image), expected, rtol=2e-5, atol=2e-5)

    lin.scale_inputs_(model.graph, layer, into)
    lin.shift_inputs_(model.graph, layer, shift)
    # reads x as (x + shift) * into: undo it in the data and the function is as before
    moved = (image / _channels(into, model)).astype(np.float32)
    shifted = (moved - _channels(shift, model)).astype(np.float32)
    lin_result = double.run_ort(model, shifted)
    np.testing.assert_allclose(lin_result, expected, rtol=1e-4, atol=1e-4)

    lin.set_bias_(model.graph, layer, bias)
    np.testing.assert_allclose(lin.bias_of(layer), bias, rtol=1e-6)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("form", list(FORMS))
def test_rotations_turn_rows(form):
    model = _model(form)
    (layer,) = lin.find_linears(model.graph)
    image, before = _input(model), double.run_ort(_model(form), _input(model))
    draw = np.random.default_rng(3)
    left = np.linalg.qr(draw.standard_normal((4, 4)))[0]
    right = np.linalg.qr(draw.standard_normal((6, 6)))[0]

    lin.rotate_inputs_(model.graph, layer, left)
    lin.rotate_outputs_(model.graph, layer, right)

    axis = layer.channel_axis
    turned = np.moveaxis(np.moveaxis(image, axis, -1) @ left, -1, axis).astype(np.float32)
    expected = np.moveaxis(np.moveaxis(before, axis, -1) @ right, -1, axis)
    np.testing.assert_allclose(double.run_ort(model, turned), expected, rtol=1e-4, atol=1e-4)


def test_a_shared_weight_is_copied_before_it_is_edited():
    model = _model("matmul", "z = MatMul (x, w)")
    first, second = lin.find_linears(model.graph)
    before = lin.kernel_of(second)
    lin.scale_outputs_(model.graph, first, np.full(6, 2.0))
    assert np.array_equal(lin.kernel_of(second), before)
    np.testing.assert_allclose(lin.kernel_of(first), 2 * before)


def test_a_table_by_token_is_no_bias():
    model = _model("matmul bias")
    add = model.graph[1]
    table = np.ones((5, 6), np.float32)
    add.inputs[1].const_value = ir.tensor(table, name="b")
    (layer,) = lin.find_linears(model.graph)
    assert layer.bias is None
    assert layer.output is model.graph[0].outputs[0]


@pytest.mark.parametrize("attributes", ["alpha = 2.0", "beta = 0.5", "transA = 1"])
def test_an_unusual_gemm_is_no_layer(attributes):
    text = f"y = Gemm <{attributes}> (x, w, b)"
    FORMS["odd"] = text
    try:
        assert lin.find_linears(_model("odd").graph) == []
    finally:
        del FORMS["odd"]


def test_a_new_bias_on_an_output_keeps_the_name_of_the_output():
    model = _model("matmul")
    (layer,) = lin.find_linears(model.graph)
    lin.set_bias_(model.graph, layer, np.ones(6))
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert layer.bias is not None
