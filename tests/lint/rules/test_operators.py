"""Operators that the parser imports not at all, or not in every form."""

import numpy as np
import onnx
import pytest

from tests.lint import graphs
from tests.lint.graphs import graph
from tests.lint.verdicts import lint, result, whys


@pytest.mark.parametrize(
    ("equation", "version", "fails"),
    [
        ("...ij,...jk->...ik", "10.3", True),
        ("...ij,...jk->...ik", "10.12", False),
        ("iij,ijk->ik", "10.3", True),
        ("iij,ijk->ik", "trt-rtx", False),
        ("bij, bjk -> bik", "8.6", False),
        ("Bij,Bjk->Bik", "11.4", True),
    ],
)
def test_einsum(equation: str, version: str, fails: bool):
    model = graphs.einsum(equation, "4,4,8", "4,8,4", "4,4,4")
    assert bool(whys(model, 11, version)) is fails


def test_scatter_reductions():
    assert "'add'" in whys(graphs.scatter('<reduction = "add">'), 12, "11")
    assert "be it 'none'" in whys(graphs.scatter('<reduction = "none">'), 12)
    assert whys(graphs.scatter('<reduction = "none">'), 12, "10.15") == ""


@pytest.mark.parametrize(
    ("operator", "version", "first"),
    [("Gelu", "8.6", "TensorRT 10.0"), ("HannWindow", "10.3", "TensorRT 10.4")],
)
def test_the_version_that_has_an_operator_is_named(operator: str, version: str, first: str):
    source = "x" if operator == "Gelu" else "n"
    model = graph(
        f"g (float[4] x) => (float[m] y) {{ y = {operator}({source}) }}", 20, n=np.int64(4)
    )
    assert f"{first} has" in whys(model, 12, version)
    assert whys(model, 12, first.removeprefix("TensorRT ")) == ""


def test_a_plugins_operator_is_a_warning():
    model = graph("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    model.graph.node[0].domain = "mine"
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    findings = result(lint(model), 9).findings
    assert [finding.severity for finding in findings] == ["warning"]


def test_the_further_output_counts_where_nobody_reads_it():
    assert "read or not" in whys(graphs.layer_norm("y, m", "float[1,4,32] z"), 13)


def test_resize_that_keeps_the_aspect_ratio():
    model = graph(
        """g (float[1,3,16,16] x) => (float[1,3,8,8] y) {
             y = Resize <mode = "linear", keep_aspect_ratio_policy = "not_larger">
                 (x, , , sizes)
           }""",
        sizes=np.array([1, 3, 8, 8]),
    )
    assert "stretch" in whys(model, 10)


def test_resize_modes():
    model = graph(
        """g (float[1,3,16,16] x) => (float[1,3,8,8] y) {
             y = Resize <mode = "linear", coordinate_transformation_mode =
                         "half_pixel_symmetric"> (x, , scales)
           }""",
        scales=np.array([1, 1, 0.5, 0.5], np.float32),
    )
    assert "half_pixel_symmetric" in whys(model, 10)
