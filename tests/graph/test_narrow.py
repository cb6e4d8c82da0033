"""narrow_indices_: int32 where ONNX allows it and every value fits."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.graph.narrow import narrow_indices_
from vitdeploy.targets.onnx import runner_from_model

END = np.iinfo(np.int64).max


def model_with(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a, np.int64), name) for name, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model) -> np.ndarray:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    with runner_from_model(model) as runner:
        return runner({"x": x})["y"]


def test_slice_and_gather_become_int32_and_give_the_same():
    nodes = [
        helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["s"], "slice"),
        helper.make_node("Gather", ["s", "indices"], ["y"], "gather", axis=0),
    ]
    model = model_with(nodes, starts=[1], ends=[END], axes=[1], indices=[2, 0])
    before = run(model)
    assert narrow_indices_(model) == 4
    kinds = {value.dtype for value in model.graph.initializers.values()}
    assert kinds == {ir.DataType.INT32}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(run(model), before)


def test_shapes_stay_int64_for_onnx_allows_nothing_else():
    model = model_with([helper.make_node("Reshape", ["x", "shape"], ["y"], "r")], shape=[6, 4])
    assert narrow_indices_(model) == 0
    assert model.graph.initializers["shape"].dtype == ir.DataType.INT64


def test_an_index_that_does_not_fit_stays():
    model = model_with(
        [helper.make_node("Gather", ["x", "indices"], ["y"], "g", axis=0)], indices=[2**40]
    )
    assert narrow_indices_(model) == 0
