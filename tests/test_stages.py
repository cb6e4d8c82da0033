"""What a run says of its parts as they were exported."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.conftest import tiny_vit_graph
from tests.small_models import SMALL_VIT, timm_part
from vitdeploy.job import ExportedPart
from vitdeploy.models.spec import ExportPart, TensorSpec
from vitdeploy.onnx_export import onnx_from_part
from vitdeploy.stages import recognition_notes

PART = ExportPart("model", None, (TensorSpec("pixel_values", ("batch", 3, 16, 16)),), ())


def exported(model: ir.Model, part: ExportPart = PART) -> ExportedPart:
    return ExportedPart(part, model, Path("model.onnx"), "0" * 64, 0)


def with_softmax(value: str) -> ir.Model:
    """The tiny graph with a Softmax named `gate` behind a value."""
    model = tiny_vit_graph()
    source = next(o for node in model.graph for o in node.outputs if o.name == value)
    node = ir.node("Softmax", [source], attributes={"axis": -1}, name="gate")
    node.outputs[0].name = "gated"
    node.outputs[0].shape, node.outputs[0].type = source.shape, source.type
    source.replace_all_uses_with(node.outputs[0])
    node.replace_input_with(0, source)
    model.graph.insert_after(source.producer(), node)
    return model


def test_a_softmax_that_is_no_attention_is_named_with_the_reason():
    (note,) = recognition_notes([exported(with_softmax("hidden_1"))])
    assert "model: 1 softmax nodes are not recognised as attention, such as 'gate'" in note
    assert "(fc1_bias does not add to one query-key product)" in note


@pytest.mark.parametrize("model", [tiny_vit_graph(), with_softmax("pooled")], ids=["none", "flat"])
def test_a_softmax_over_classes_is_nothing_to_tell(model):
    assert recognition_notes([exported(model)]) == []


def test_a_vits_attention_is_recognised():
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    part = timm_part("vit_tiny_patch16_224", **SMALL_VIT)
    model = onnx_from_part(part, images, "dynamic", 20)
    assert recognition_notes([exported(model, part)]) == []
