"""Every Slice says its steps afterwards, and cuts what it cut before."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from vitdeploy.graph.slice_steps import write_slice_steps_
from vitdeploy.targets.onnx import runner_from_model


def sliced(inputs: list[str], constants: dict[str, list[int]]) -> ir.Model:
    """A Slice of x (2, 3, 4) with the inputs named."""
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", *inputs], ["y"], name="cut")],
        "slices",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c"])],
        [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in constants.items()],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )


def steps_of(model: ir.Model) -> list[int] | None:
    value = model.graph.node(0).inputs[4]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().tolist()


@pytest.mark.parametrize(
    ("inputs", "constants"),
    [
        (["s", "e", "a"], {"s": [1], "e": [3], "a": [2]}),
        (["s", "e"], {"s": [0, 1], "e": [1, 3]}),  # axes left to their default too
        (["s", "e", "a", ""], {"s": [1], "e": [3], "a": [1]}),
    ],
)
def test_steps_are_written_and_nothing_else_changes(inputs: list[str], constants: dict):
    model = sliced(inputs, constants)
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with runner_from_model(model.clone()) as runner:
        before = runner({"x": x})["y"]
    write_slice_steps_(model)
    assert steps_of(model) == [1] * len(constants["s"])
    onnx.checker.check_model(ir.to_proto(model))
    with runner_from_model(model) as runner:
        np.testing.assert_array_equal(runner({"x": x})["y"], before)


def test_steps_that_are_there_stay():
    model = sliced(["s", "e", "a", "t"], {"s": [0], "e": [4], "a": [2], "t": [2]})
    write_slice_steps_(model)
    assert steps_of(model) == [2]
