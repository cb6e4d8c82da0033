"""onnx.checker's verdict, the opset, dynamic dimensions."""

import numpy as np
import onnx
import pytest

from tests.lint import graphs
from tests.lint.graphs import graph
from tests.lint.verdicts import lint, result, whys


def test_onnx_checker_speaks_as_rule_0():
    model = graphs.plain()
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("strange", 1))
    assert "strange" in whys(model, 0)


def test_types_that_disagree_break_rule_0():
    model = graphs.plain()
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    assert "types or shapes disagree" in whys(model, 0)


def test_a_value_that_nothing_makes_breaks_rule_0_and_leaves_the_others():
    model = graphs.pair(np.int8(3))
    model.graph.node[2].input[0] = "nowhere"
    report = lint(model)
    assert result(report, 0).findings[0].node == "value nowhere"
    assert result(report, 1).verdict == "fail"


@pytest.mark.parametrize(
    ("version", "newest"),
    [("8.6", 17), ("10.0", 20), ("10.14", 20), ("10.15", 24), ("11", 25), ("trt-rtx", 25)],
)
def test_the_newest_by_version(version: str, newest: int):
    assert whys(graphs.plain(newest), 14, version) == ""
    assert f"up to {newest}" in whys(graphs.plain(newest + 1), 14, version)


def test_the_oldest():
    model = graph("g (float[4] x) => (float[4] y) { y = Relu(x) }", 8)
    assert "from 9 on" in whys(model, 14)


def test_a_profiled_input_may_be_dynamic():
    model = graphs.plain(shape="batch,4,32")
    assert result(lint(model, profiled=frozenset({"x"})), 19).verdict == "pass"
