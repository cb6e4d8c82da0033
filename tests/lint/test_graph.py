"""Strange graphs: functions, control flow, no shapes, no names."""

import numpy as np
import onnx
import onnx_ir as ir

from tests.lint import graphs
from tests.lint.attention_graph import Attention
from tests.lint.verdicts import lint, result
from vitdeploy.lint import lint_model


def test_unnamed_nodes_are_told_by_operator_and_outputs():
    named = graphs.pair(np.int8(3))
    named.graph.node[0].name = "first"
    nodes = [f.node for f in result(lint(named), 1).findings]
    assert nodes == ["first", "DequantizeLinear -> d"]


def test_zero_points_inside_a_function_are_seen():
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 19, "local" : 1]>
        g (float[4] x) => (float[4] y) <float s = {0.1}, int8 z = {5}> { y = local.qdq(x, s, z) }
        <domain: "local", opset_import: ["" : 19]>
        qdq (a, s, z) => (b) {
          q = QuantizeLinear(a, s, z)
          b = DequantizeLinear(q, s, z)
        }"""
    )
    report = lint(model)
    assert result(report, 1).verdict == "fail"
    assert result(report, 3).verdict == "pass"
    assert "local.qdq" in result(lint(model, "8.6"), 12).findings[-1].node


def test_bodies_of_control_flow_are_linted_and_noted():
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 19]>
        g (bool c, float[4] x) => (float[n] y) {
          y = If (c) <then_branch = t () => (float[n] a) { a = Unique(x) },
                      else_branch = e () => (float[4] b) { b = Neg(x) }>
        }"""
    )
    report = lint(model)
    assert result(report, 12).findings[0].node == "Unique -> a"
    assert "control flow" in report.notes[0]


def test_a_graph_without_any_shapes_is_taken():
    model = Attention(quantized="qk", packed=True).proto()
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    report = lint(model)
    assert result(report, 21).verdict == "fail"
    assert result(report, 23).verdict == "fail"
    assert "no shape" in result(report, 19).findings[0].why


def test_constants_that_are_also_inputs_are_constants():
    model = graphs.pair(np.int8(0))
    model.graph.input.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, []))
    assert lint(model).errors == 0


def test_the_model_is_left_as_it_was():
    model = ir.from_proto(Attention(packed=True).proto())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lint_model(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
