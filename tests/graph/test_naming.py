"""Names for people: from torch's scopes, the node or its weight; unique; no metadata left."""

import numpy as np
import onnx
import onnx_ir as ir

from vitdeploy.graph import naming


def _model(nodes, weights=()):
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", floats, [2, 2])],
        [helper.make_tensor_value_info("y", floats, [2, 2])],
        [onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32), name) for name in weights],
    )
    return ir.from_proto(helper.make_model(graph))


def test_the_module_scope_gives_the_name():
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="node_relu")
    entry = node.metadata_props.add()
    entry.key = "pkg.torch.onnx.name_scopes"
    entry.value = "['', 'blocks', 'blocks.0', 'relu']"
    model = _model([node])
    naming.name_nodes_(model)
    assert model.graph[0].name == "blocks.0/Relu"
    naming.clear_metadata_(model)
    assert not model.graph[0].metadata_props
    naming.name_nodes_(model)
    assert model.graph[0].name == "blocks.0/Relu"


def test_without_scopes_the_nodes_name_stays_and_doubles_are_numbered():
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"], name="/blocks.0/act/Relu"),
        onnx.helper.make_node("Relu", ["a"], ["y"], name="/blocks.0/act/Relu"),
    ]
    model = _model(nodes)
    naming.name_nodes_(model)
    assert [n.name for n in model.graph] == ["/blocks.0/act/Relu", "/blocks.0/act/Relu_1"]


def test_without_a_name_the_weight_gives_one():
    model = _model([onnx.helper.make_node("MatMul", ["x", "fc1.weight"], ["y"])], ["fc1.weight"])
    naming.name_nodes_(model)
    assert model.graph[0].name == "fc1/MatMul"


def test_an_anonymous_weight_is_named_after_its_node():
    node = onnx.helper.make_node("MatMul", ["x", "val_13"], ["y"], name="fc1/MatMul")
    model = _model([node], ["val_13"])
    naming.name_weights_(model)
    assert model.graph[0].inputs[1].name == "fc1.weight"
    assert list(model.graph.initializers) == ["fc1.weight"]


def test_broken_scopes_are_ignored():
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="act")
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "not a list ["
    model = _model([node])
    naming.name_nodes_(model)
    assert model.graph[0].name == "act"
