"""Multiply-accumulates, against what a person counts."""

import onnx_ir as ir
from onnx import TensorProto, helper

from tests.conftest import tiny_vit_graph
from vitdeploy.graph.work import macs_by_node


def test_every_product_is_counted_per_image():
    expected = {"patch": 16 * 48 * 8, "fc1": 16 * 8 * 32, "fc2": 16 * 32 * 8, "head": 8 * 5}
    assert macs_by_node(tiny_vit_graph()) == expected
    assert macs_by_node(tiny_vit_graph(), batch=3) == expected


def graph(nodes: list, inputs: dict[str, list], outputs: dict[str, list]) -> ir.Model:
    def infos(values: dict[str, list]) -> list:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in values.items()]

    made = helper.make_graph(nodes, "g", infos(inputs), infos(outputs))
    opsets = [helper.make_opsetid("", 20)]
    return ir.from_proto(helper.make_model(made, opset_imports=opsets))


def test_products_of_two_activations_count_too():
    nodes = [helper.make_node("MatMul", ["q", "k"], ["s"], "scores")]
    model = graph(nodes, {"q": [1, 4, 6], "k": [1, 6, 4]}, {"s": [1, 4, 4]})
    assert macs_by_node(model) == {"scores": 4 * 4 * 6}


def test_what_cannot_be_known_is_none():
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["p"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "p"], ["y"], "open"),
    ]
    assert macs_by_node(graph(nodes, {"x": [2, 2]}, {"y": [2, "n"]})) == {"open": None}
