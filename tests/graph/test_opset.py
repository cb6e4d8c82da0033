"""Raising an opset: what changes, what stays, what is refused."""

import onnx
import pytest
from onnx import helper

from tests.onnx_files import tiny_proto
from vitdeploy.errors import ModelError
from vitdeploy.graph.opset import opset_of, raised_opset, require_plain


def test_the_newest_version_of_either_spelling_counts():
    proto = tiny_proto()
    assert opset_of(proto) == 20
    proto.opset_import[0].domain = "ai.onnx"
    assert opset_of(proto) == 20
    del proto.opset_import[:]
    assert opset_of(proto) == 0


def test_an_opset_new_enough_is_left_alone():
    proto = tiny_proto()
    assert raised_opset(proto, 20, "f") is proto
    assert raised_opset(proto, 17, "f") is proto


def test_names_of_nodes_and_tensors_survive_a_conversion():
    proto = tiny_proto()
    raised = raised_opset(proto, 21, "f")
    assert opset_of(raised) == 21
    assert [node.name for node in raised.graph.node] == [node.name for node in proto.graph.node]
    assert [v.name for v in raised.graph.output] == ["logits"]


def test_what_the_converter_cannot_do_is_refused():
    proto = tiny_proto()
    proto.opset_import[0].version = 5  # too old for LayerNormalization and Gelu
    with pytest.raises(ModelError, match=r"opset 5.*Export the model again with opset 20"):
        raised_opset(proto, 20, "old.onnx")


def test_a_plain_graph_is_accepted():
    require_plain(tiny_proto(), "f")


def test_an_operator_of_a_runtime_is_named():
    proto: onnx.ModelProto = tiny_proto()
    proto.graph.node.append(
        helper.make_node("FusedGelu", ["residual"], ["g"], domain="com.microsoft")
    )
    with pytest.raises(ModelError, match=r"com\.microsoft\.FusedGelu"):
        require_plain(proto, "f")
