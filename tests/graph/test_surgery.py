"""Graph edits keep outputs' names, shared constants and dtypes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.graph import surgery


def _model(body, out="y"):
    head = f"(float[2, 4] x) => (float[2, 4] {out})"
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {head} {{{body}}}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "c"))
    return ir.from_proto(proto)


def test_replacing_an_output_keeps_its_name():
    model = _model("a = Relu (x) y = Identity (a)")
    identity = model.graph[1]
    assert surgery.replace_(model.graph, identity.outputs[0], identity.inputs[0])
    surgery.remove_dead_(model.graph)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert [node.op_type for node in model.graph] == ["Relu"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_an_output_cannot_become_an_input():
    model = _model("y = Identity (x)")
    node = model.graph[0]
    assert not surgery.replace_(model.graph, node.outputs[0], node.inputs[0])
    assert model.graph.outputs[0] is node.outputs[0]


def test_a_shared_constant_is_copied():
    model = _model("a = Add (x, c) y = Mul (a, c)")
    surgery.set_constant_(model.graph, model.graph[0], 1, np.full(4, 2.0))
    assert surgery.constant_of(model.graph[0].inputs[1]).tolist() == [2.0] * 4
    assert surgery.constant_of(model.graph[1].inputs[1]).tolist() == [1.0] * 4
    assert surgery.constant_of(model.graph[0].inputs[1]).dtype == np.float32


def test_what_is_no_constant_is_not_overwritten():
    model = _model("y = Add (x, c)")
    with pytest.raises(ValueError, match="is not a constant"):
        surgery.set_constant_(model.graph, model.graph[0], 0, np.ones(4))


def test_a_graph_input_is_never_a_constant_and_outputs_have_no_sole_reader():
    model = _model("a = Relu (x) y = Add (a, c)")
    assert surgery.constant_of(model.graph.inputs[0]) is None
    assert surgery.sole_reader(model.graph[0].outputs[0]) is model.graph[1]
    assert surgery.sole_reader(model.graph[1].outputs[0]) is None


def test_names_stay_unique():
    model = _model("y = Add (x, c)")
    value = surgery.new_constant_(model.graph, "c", np.zeros(2, np.float32))
    assert value.name == "c_1"
