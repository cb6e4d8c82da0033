"""FP16 graphs brought back to FP32."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.exactness import canonical
from vitdeploy.graph.half import half_from_model
from vitdeploy.graph.single import has_half, single_from_half
from vitdeploy.targets.onnx import runner_from_model


@pytest.mark.parametrize("family", ["vit", "swin", "fastvit"])
def test_the_function_is_that_of_the_fp32_graph_but_for_rounded_constants(family: str):
    model = canonical(family)
    shape = [2, *model.graph.inputs[0].shape[1:]]
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    half = half_from_model(model)
    assert has_half(half)
    single = single_from_half(half)
    assert not has_half(single)
    assert has_half(half)  # the argument stays
    outputs = []
    for graph in (model, single):
        with runner_from_model(graph) as runner:
            outputs.append(runner({"pixel_values": pixels}))
    for name, expected in outputs[0].items():
        noise = np.square(expected - outputs[1][name]).sum() / np.square(expected).sum()
        # constants of 11 bits: 66 dB each, less over the layers
        assert 10 * np.log10(1 / noise) > 50


def test_no_cast_between_float_types_and_no_name_is_lost():
    model = canonical("vit")
    single = single_from_half(half_from_model(model))
    assert {str(node.name) for node in model.graph} == {str(node.name) for node in single.graph}
    assert [value.name for value in single.graph.outputs] == ["logits"]


def test_a_cast_from_integers_makes_fp32():
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([2]))
    cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT16.value}, name="cast")
    cast.outputs[0].name, cast.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT16)
    graph = ir.Graph([value], [cast.outputs[0]], nodes=[cast], opset_imports={"": 20})
    single = single_from_half(ir.Model(graph, ir_version=9))
    (node,) = single.graph
    assert node.attributes["to"].as_int() == ir.DataType.FLOAT
    assert single.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_an_fp32_graph_stays_as_it_is():
    model = canonical("vit")
    assert not has_half(model)
    assert len(single_from_half(model).graph) == len(model.graph)
