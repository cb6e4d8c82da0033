"""Grouped convolutions with several outputs a channel become depthwise, and compute the same."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graph.exactness import assert_exact
from vitdeploy.graph.channel_multiplier import depthwise_from_multiplied_
from vitdeploy.graph.surgery import int_attribute

RNG = np.random.default_rng(0)


def conv_model(body: str, **weights: tuple[int, ...]) -> bytes:
    text = (
        '<ir_version: 9, opset_import: ["" : 20]> '
        f"g (float[batch, 3, 9, 9] pixel_values) => (float[batch, c, h, w] y) {{ {body} }}"
    )
    proto = onnx.parser.parse_model(text)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(RNG.standard_normal(shape).astype("f4"), name)
        for name, shape in weights.items()
    )
    return onnx.shape_inference.infer_shapes(proto).SerializeToString()


MULTIPLIED = "h0 = Conv <group = 3, strides = [2, 2], pads = [1, 1, 1, 1]> (pixel_values, w, b)"
SIZES = {"w": (6, 1, 3, 3), "b": (6,)}


@pytest.mark.parametrize(
    ("body", "weights", "inserted"),
    [
        (f"{MULTIPLIED} y = Conv (h0, v)", {**SIZES, "v": (5, 6, 1, 1)}, "Concat"),
        (
            f"{MULTIPLIED} h1 = Gelu (h0) h2 = Relu (h1) y = Conv (h2, v)",
            {**SIZES, "v": (5, 6, 3, 3)},
            "Concat",
        ),
        (f"{MULTIPLIED} y = Gelu (h0)", SIZES, "Gather"),
        (f"{MULTIPLIED} s = Sigmoid (h0) y = Mul (h0, s)", SIZES, "Gather"),
        (
            f"{MULTIPLIED} y = Conv <group = 2> (h0, v)",
            {**SIZES, "v": (4, 3, 1, 1)},
            "Gather",
        ),
    ],
)
def test_it_is_exact_whoever_reads_it(body, weights, inserted):
    model = assert_exact(conv_model(body, **weights), depthwise_from_multiplied_)
    first = next(node for node in model.graph if node.op_type == "Conv")
    assert int_attribute(first, "group", 1) == 6
    assert [node.op_type for node in model.graph].count(inserted) == 1
    assert depthwise_from_multiplied_(model) == 0


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = Conv <group = 3> (pixel_values, w)", {"w": (3, 1, 3, 3)}),
        ("h = Relu (pixel_values) y = Conv <group = 1> (h, w)", {"w": (8, 3, 3, 3)}),
        ("y = Conv (pixel_values, w)", {"w": (8, 3, 3, 3)}),
        ("v = Relu (w) y = Conv <group = 3> (pixel_values, v)", {"w": (6, 1, 3, 3)}),
    ],
)
def test_other_convolutions_are_left_alone(body, weights):
    model = ir.from_proto(onnx.load_from_string(conv_model(body, **weights)))
    before = ir.to_proto(model).SerializeToString()
    assert depthwise_from_multiplied_(model) == 0
    assert ir.to_proto(model).SerializeToString() == before
