"""Observers behind what they read."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from vitdeploy.graph.observers import bring_observers_forward_


def chain(length: int) -> tuple[ir.Model, list[ir.Value]]:
    shape, floats = ir.Shape([4]), ir.TensorType(ir.DataType.FLOAT)
    x = ir.val("x", shape=shape, type=floats)
    nodes, value = [], x
    for number in range(length):
        node = ir.node("Sin", [value], name=f"n{number}")
        value = node.outputs[0]
        value.name, value.shape, value.type = f"v{number}", shape, floats
        nodes.append(node)
    graph = ir.Graph([x], [value], nodes=nodes, opset_imports={"": 20}, name="chain")
    return ir.Model(graph, ir_version=10), [node.outputs[0] for node in nodes]


def observe_(model: ir.Model, *values: ir.Value) -> None:
    size = ir.node("Sum", list(values))
    largest = ir.node("ReduceMax", [size.outputs[0]], attributes={"keepdims": 0})
    model.graph.extend([size, largest])
    output = largest.outputs[0]
    output.name, output.shape = f"out{len(model.graph.outputs)}", ir.Shape([])
    output.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(output)


def run(model: ir.Model) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"x": np.arange(4, dtype=np.float32)})


def test_observers_stand_behind_the_last_value_they_read():
    model, values = chain(4)
    observe_(model, values[2])
    observe_(model, values[0])
    observe_(model, values[1], values[0])
    observe_(model, model.graph.inputs[0])
    before = run(model)

    bring_observers_forward_(model.graph, 4)

    order = [node.op_type for node in model.graph]
    expected = ["Sin", "Sum", "ReduceMax", "Sum", "ReduceMax"]
    expected += ["Sin", "Sum", "ReduceMax", "Sin", "Sum", "ReduceMax", "Sin"]
    assert order == expected
    for was, now in zip(before, run(model), strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_graph_without_observers_stays():
    model, _ = chain(3)
    bring_observers_forward_(model.graph, 3)
    assert [node.name for node in model.graph] == ["n0", "n1", "n2"]
