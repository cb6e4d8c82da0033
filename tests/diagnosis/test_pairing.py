"""Two graphs side by side: what is matched, what is copied, what is refused."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.conftest import tiny_vit_graph
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.diagnosis.pairing import block_of, clone_segment, pair_models
from vitdeploy.errors import DataError
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.recipe import Int8Section
from vitdeploy.targets.onnx import runner_from_model

OPTIONS = Int8Section(folds="off", placement="all", bias_correction=False)


@pytest.fixture
def artefact(vit_graph: ir.Model, pixels: np.ndarray) -> ir.Model:
    scheme = QuantScheme(quantizes_conv_outputs=True)
    return quantize_int8(vit_graph, scheme, lambda: [{"pixel_values": pixels}], OPTIONS).model


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.0.attn.qkv/MatMul", "blocks.0"),
        ("layers.1.blocks.0.mlp.fc1/MatMul", "layers.1.blocks.0"),
        ("layers.1.downsample.reduction/MatMul", "layers.1"),
        ("/blocks/blocks.11/attn/qkv/MatMul", "/blocks/blocks.11"),
        ("vit.encoder.layer.3.output.dense/MatMul", "vit.encoder.layer.3"),
        ("stages.2.blocks.5.token_mixer/Conv", "stages.2.blocks.5"),
        ("blocks.0/Add_1", "blocks.0"),
        ("patch_embed.proj/Conv", ""),
        ("myblocks.0x/Add", ""),
        ("MatMul_3", ""),
    ],
)
def test_blocks_are_read_from_names(name: str, block: str):
    assert block_of(name) == block


def test_products_are_matched_with_their_bias(vit_graph: ir.Model, artefact: ir.Model):
    pair = pair_models(vit_graph, artefact)
    found = {site.name: site for site in pair.sites}
    assert list(found) == ["patch", "fc1", "fc2", "head"]
    assert found["fc1"].reference_output.name == "hidden_1"
    assert found["fc1"].output.producer().op_type == "Add"
    assert found["fc1"].folds_input
    assert not found["fc2"].folds_input
    assert found["patch"].output.producer().op_type == "DequantizeLinear"
    assert [norm.name for norm in pair.norms] == ["norm"]


def test_both_graphs_compute_what_they_did(
    vit_graph: ir.Model, artefact: ir.Model, pixels: np.ndarray
):
    expected = {}
    settings = {"session.disable_quant_qdq": "1"}
    for name, model in (("fp32", vit_graph), ("int8", artefact)):
        with runner_from_model(model, settings=settings) as runner:
            expected[name] = runner({"pixel_values": pixels})["logits"]
    before = len(vit_graph.graph), len(artefact.graph)
    pair = pair_models(vit_graph, artefact)
    pair.model.graph.outputs.extend(value for both in pair.outputs for value in both)
    with runner_from_model(pair.model, settings=settings) as runner:
        results = runner({"pixel_values": pixels})
    # the same float32 operations, in an order of ONNX Runtime's choice
    np.testing.assert_allclose(results["logits"], expected["fp32"], atol=1e-5)
    np.testing.assert_allclose(results["artefact//logits"], expected["int8"], atol=1e-5)
    assert (len(vit_graph.graph), len(artefact.graph)) == before


def test_activations_can_be_left_in_float(
    vit_graph: ir.Model, artefact: ir.Model, pixels: np.ndarray
):
    errors = []
    for quantized in (True, False):
        pair = pair_models(vit_graph, artefact, quantized=quantized)
        pair.model.graph.outputs.extend(value for both in pair.outputs for value in both)
        settings = {"session.disable_quant_qdq": "1"}
        with runner_from_model(pair.model, settings=settings) as runner:
            results = runner({"pixel_values": pixels})
        errors.append(np.square(results["artefact//logits"] - results["logits"]).sum())
    assert 0 < errors[1] < errors[0]


def test_a_segment_is_copied_from_the_values_replaced_on(vit_graph: ir.Model):
    graph = vit_graph.graph
    values = {str(v.name): v for node in graph for v in node.outputs}
    count = len(graph)
    copy = clone_segment(graph, values["mlp_1"], {values["normed"]: values["stream"]})
    made = list(graph)[count:]
    assert [node.op_type for node in made] == ["MatMul", "Add", "Gelu", "MatMul", "Add"]
    assert copy is made[-1].outputs[0]
    assert made[0].inputs[0] is values["stream"]
    assert made[0].inputs[1].name == "fc1.weight"


def test_what_depends_on_nothing_replaced_is_not_copied(vit_graph: ir.Model):
    values = {str(v.name): v for node in vit_graph.graph for v in node.outputs}
    count = len(vit_graph.graph)
    same = clone_segment(vit_graph.graph, values["stream"], {values["normed"]: values["mlp_1"]})
    assert same is values["stream"]
    assert len(vit_graph.graph) == count


def test_graphs_of_two_models_are_refused(vit_graph: ir.Model, artefact: ir.Model):
    other = tiny_vit_graph()
    next(node for node in other.graph if node.name == "fc1").name = "another"
    with pytest.raises(DataError, match=r"no product 'another'.*--keep-reference"):
        pair_models(other, artefact)
    renamed = tiny_vit_graph()
    renamed.graph.outputs[0].name = "scores"
    with pytest.raises(DataError, match="other outputs"):
        pair_models(renamed, artefact)
