"""lowered_opset: the same function in opset 17, or a refusal that names the operator."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.graph.exactness import canonical
from vitdeploy.errors import ExportError
from vitdeploy.graph.opset_downgrade import lowered_opset
from vitdeploy.targets.onnx import runner_from_model


@pytest.mark.parametrize(
    "family", ["vit", "swin_padded", "swinv2", "fastvit", "hf_siglip", "eva02"]
)
def test_the_function_is_unchanged(family: str):
    model = canonical(family)
    lowered = lowered_opset(model, 17, "TensorRT 8.6")
    assert lowered.opset_imports[""] == 17
    assert model.opset_imports[""] == 20
    onnx.checker.check_model(ir.to_proto(lowered), full_check=True)
    size = [3, *model.graph.inputs[0].shape[1:]]
    feeds = {"pixel_values": np.random.default_rng(0).standard_normal(size).astype(np.float32)}
    with runner_from_model(model) as runner, runner_from_model(lowered) as other:
        expected, seen = runner(feeds)["logits"], other(feeds)["logits"]
    # Only GELU is written in another way; the rest is FP32 summation.
    np.testing.assert_allclose(seen, expected, atol=2e-5 * np.abs(expected).max())


def one_node(
    operator: str, opset: int = 20, constants: tuple = (), **attributes: object
) -> ir.Model:
    tensors = [
        numpy_helper.from_array(np.asarray(a, np.int64), f"c{i}") for i, a in enumerate(constants)
    ]
    node = helper.make_node(
        operator, ["x", *(t.name for t in tensors)], ["y"], "the_node", **attributes
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(proto)


def test_axes_become_an_attribute():
    lowered = lowered_opset(one_node("ReduceMean", constants=([1],), keepdims=0), 17, "it")
    node = next(iter(lowered.graph))
    assert node.attributes["axes"].as_ints() == (1,)
    assert len(node.inputs) == 1


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (one_node("Mish"), "Mish 'the_node' has no equivalent"),
        (one_node("ReduceMax", noop_with_empty_axes=1), "noop_with_empty_axes"),
    ],
)
def test_refuses_what_had_no_equivalent(model: ir.Model, reason: str):
    with pytest.raises(ExportError, match=reason) as caught:
        lowered_opset(model, 17, "TensorRT 8.6")
    assert "--trt-version 10.3" in str(caught.value)


def test_an_old_graph_is_left_as_it_is():
    assert lowered_opset(one_node("Relu", opset=17), 17, "it").opset_imports[""] == 17
