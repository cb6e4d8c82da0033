"""Products with constant weights are found, with their axes; everything else is left alone."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.graph.sites import (
    add_initializer,
    array_of,
    find_weight_sites,
    remove_unused_initializers,
)


def graph(nodes: list, weights: dict[str, np.ndarray], inputs: dict[str, list]) -> ir.Model:
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)],
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_the_sites_of_a_vit_in_graph_order(vit_graph: ir.Model):
    sites = find_weight_sites(vit_graph)
    assert [site.name for site in sites] == ["patch", "fc1", "fc2", "head"]
    assert [site.kind for site in sites] == ["Conv", "MatMul", "MatMul", "Gemm"]
    assert [site.activation.name for site in sites] == [
        "pixel_values",
        "normed",
        "hidden_2",
        "pooled",
    ]
    assert [site.macs_per_position() for site in sites] == [8 * 3 * 4 * 4, 8 * 32, 32 * 8, 5 * 8]


def test_the_axes_point_at_channels(vit_graph: ir.Model):
    patch, fc1, _, head = find_weight_sites(vit_graph)
    assert (patch.output_axis, patch.input_axis, patch.channel_axis) == (0, 1, 1)
    assert (fc1.output_axis, fc1.input_axis, fc1.channel_axis) == (1, 0, -1)
    # transB: (out, in)
    assert (head.output_axis, head.input_axis) == (0, 1)
    for site, outputs in ((patch, 8), (fc1, 32), (head, 5)):
        assert array_of(site.weight).shape[site.output_axis] == outputs


def test_gemm_without_transposed_weight():
    model = graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], "gemm")],
        {"w": floats(4, 6)},
        {"x": ["n", 4]},
    )
    (site,) = find_weight_sites(model)
    assert (site.output_axis, site.input_axis, site.channel_axis) == (1, 0, -1)


def test_a_grouped_convolution_knows_its_groups():
    model = graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "depthwise", group=4, pads=[1, 1, 1, 1])],
        {"w": floats(4, 1, 3, 3)},
        {"x": ["n", 4, 8, 8]},
    )
    (site,) = find_weight_sites(model)
    assert site.groups == 4
    assert site.macs_per_position() == 36


@pytest.mark.parametrize(
    ("nodes", "weights", "inputs"),
    [
        # attention's products have two activations
        ([helper.make_node("MatMul", ["a", "b"], ["y"])], {}, {"a": ["n", 4], "b": [4, 4]}),
        # a constant on the left is a table that is looked up, not a layer
        ([helper.make_node("MatMul", ["w", "x"], ["y"])], {"w": floats(4, 4)}, {"x": [4, 4]}),
        # a stack of weights has no one output axis
        (
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            {"w": floats(2, 4, 4)},
            {"x": [2, 4, 4]},
        ),
        (
            [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)],
            {"w": floats(4, 6)},
            {"x": [4, "n"]},
        ),
        (
            [helper.make_node("MatMul", ["x", "w"], ["y"], domain="com.example")],
            {"w": floats(4, 4)},
            {"x": ["n", 4]},
        ),
        ([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": floats(4)}, {"x": ["n", 4]}),
    ],
    ids=["two activations", "constant left", "stacked", "transA", "other domain", "elementwise"],
)
def test_what_is_no_site(nodes: list, weights: dict, inputs: dict):
    assert find_weight_sites(graph(nodes, weights, inputs)) == []


def test_other_types_are_no_site():
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": floats(4, 4).astype(np.float16)},
        {"x": ["n", 4]},
    )
    assert find_weight_sites(model) == []


def test_a_value_without_constant_is_refused(vit_graph: ir.Model):
    with pytest.raises(ValueError, match="'pixel_values' is not a constant"):
        array_of(vit_graph.graph.inputs[0])


def test_added_constants_get_free_names(vit_graph: ir.Model):
    first = add_initializer(vit_graph, "scale", floats(3))
    second = add_initializer(vit_graph, "scale", 2 * floats(2))
    assert (first.name, second.name) == ("scale", "scale_1")
    assert array_of(vit_graph.graph.initializers["scale_1"]).tolist() == [2.0, 2.0]
    assert first.shape is not None
    assert first.dtype == ir.DataType.FLOAT


def test_unused_constants_go_and_used_ones_stay(vit_graph: ir.Model):
    before = set(vit_graph.graph.initializers)
    add_initializer(vit_graph, "nobody", floats(3))
    remove_unused_initializers(vit_graph)
    assert set(vit_graph.graph.initializers) == before
