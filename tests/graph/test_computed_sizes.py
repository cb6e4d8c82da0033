import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.errors import ExportError
from vitdeploy.graph.computed_sizes import computed_outputs, without_computed_outputs


def resizing_graph(*outputs: str) -> ir.Model:
    """`x` times two as `doubled`; resized to what `size` holds as `shown`; to a row as `flat`."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"], "mul"),
        helper.make_node("Cast", ["size"], ["whole"], "cast", to=TensorProto.INT64),
        helper.make_node("Concat", ["front", "whole"], ["sizes"], "concat", axis=0),
        helper.make_node("Resize", ["doubled", "", "", "sizes"], ["resized"], "resize"),
        helper.make_node("Neg", ["resized"], ["shown"], "neg"),
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "zero"], ["count"], "gather"),
        helper.make_node("Concat", ["count", "minus_one"], ["rows"], "rows", axis=0),
        helper.make_node("Reshape", ["doubled", "rows"], ["flat"], "reshape"),
    ]
    shapes = {
        "doubled": ["n", 1, 4, 4],
        "shown": ["n", 1, "height", "width"],
        "flat": ["n", 16],
    }
    graph = helper.make_graph(
        nodes,
        "resizing",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4]),
            helper.make_tensor_value_info("size", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in outputs],
        [
            numpy_helper.from_array(np.float32(2), "two"),
            numpy_helper.from_array(np.array([1, 1]), "front"),
            numpy_helper.from_array(np.array([0]), "zero"),
            numpy_helper.from_array(np.array([-1]), "minus_one"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def test_a_size_from_values_is_told_from_a_size_from_shapes():
    assert computed_outputs(resizing_graph("doubled", "shown", "flat")) == ("shown",)


def test_such_outputs_go_with_the_inputs_that_only_they_read():
    model = resizing_graph("doubled", "shown", "flat")
    kept = without_computed_outputs(model)
    assert [value.name for value in kept.graph.outputs] == ["doubled", "flat"]
    assert [value.name for value in kept.graph.inputs] == ["x"]
    assert {node.op_type for node in kept.graph} == {"Mul", "Shape", "Gather", "Concat", "Reshape"}
    assert len(model.graph.outputs) == 3
    from vitdeploy.targets.onnx import runner_from_model

    x = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    with runner_from_model(kept) as runner:
        outputs = runner({"x": x})
    np.testing.assert_array_equal(outputs["flat"], 2 * x.reshape(2, 16))


def test_a_graph_without_such_outputs_stays_what_it_is():
    model = resizing_graph("flat")
    assert without_computed_outputs(model) is model


def test_a_graph_of_nothing_else_is_refused():
    with pytest.raises(ExportError, match=r"every output \(shown\) follows from the values"):
        without_computed_outputs(resizing_graph("shown"))
