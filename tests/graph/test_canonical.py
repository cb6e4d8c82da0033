"""canonicalise_: exact on every family, deterministic, idempotent, and it says what it leaves."""

import onnx
import onnx_ir as ir
import pytest

from tests.graph import double, tiny
from tests.graph.exactness import assert_exact, canonical
from vitdeploy.errors import ModelError
from vitdeploy.graph.canonical import canonicalise_
from vitdeploy.graph.folds import FOLDS

HEADS = {
    "vit": 2, "vit_qk_norm": 2, "deit_distilled": 2, "dinov2_reg": 2, "clip": 2,
    "res_post_norm": 2, "classic_post_norm": 2, "swin": 3, "swin_padded": 3, "swinv2": 3,
    "fastvit": 1, "eva02": 2, "dinov3": 2, "eva_qk_norm": 2, "cait": 2, "hf_vit": 2,
    "hf_dinov2": 2, "hf_siglip": 2, "sam": 2,
}  # fmt: skip


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_the_function_is_unchanged(family):
    model = assert_exact(tiny.exported(family), canonicalise_)

    report = canonicalise_(model)
    assert len(report.attention) == HEADS[family]
    left = {node.op_type for node in model.graph}
    assert not left & {"BatchNormalization", "Identity", "Dropout", "Erf", "IsNaN", "Constant"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore:.*:torch.jit.TracerWarning")
@pytest.mark.parametrize(("family", "opset"), [("vit", 20), ("swin", 17), ("hf_dinov2", 17)])
def test_a_file_of_the_older_exporter_comes_to_the_same_form(family, opset):
    """There targets of reshapes, scales and bounds of slices are computed from Shape."""
    model = assert_exact(tiny.exported_by_tracing(family, opset), canonicalise_)
    sites = canonicalise_(model).attention
    assert [site.name for site in sites] != []
    assert all(site.scale == 1.0 and not site.has_qk_norm for site in sites)
    for name in ("layernorm_scale", "query_key_scale", "key_shift", "value_scale"):
        fold = FOLDS[name]
        new, old = (
            [fold.applies(site) for site in fold.find(graph)]
            for graph in (model, canonical(family))
        )
        assert new.count(None) == old.count(None) > 0
    assert not any(
        node.op_type == "Reshape" and node.inputs[1].const_value is None for node in model.graph
    )


@pytest.mark.parametrize("family", ["vit", "swin_padded", "fastvit", "eva02", "hf_dinov2", "cait"])
def test_two_runs_give_identical_bytes_and_a_third_changes_nothing(family):
    once, again = (ir.from_proto(onnx.load_from_string(tiny.exported(family))) for _ in range(2))
    canonicalise_(once)
    canonicalise_(again)
    data = ir.to_proto(once).SerializeToString()
    assert ir.to_proto(again).SerializeToString() == data

    canonicalise_(once)
    assert ir.to_proto(once).SerializeToString() == data


def test_no_machine_path_and_no_metadata_is_left():
    model = canonical("swin")
    text = str(onnx.printer.to_text(ir.to_proto(model))) + str(ir.to_proto(model))
    assert "/site-packages/" not in text
    assert "stack_trace" not in text
    assert not any(node.metadata_props for node in model.graph)


def test_nodes_are_named_after_modules():
    names = [node.name for node in canonical("vit").graph]
    assert "blocks.0.attn.qkv/MatMul" in names
    assert "blocks.1.mlp.fc2/Add" in names


def test_the_scale_of_q_and_k_is_folded_everywhere_but_behind_cosine_attention():
    for family in ("vit", "swin", "eva02", "vit_qk_norm", "hf_siglip"):
        model = canonical(family)
        assert all(not site.scale_nodes for site in canonicalise_(model).attention)
        assert all(site.scale == 1.0 for site in canonicalise_(model).attention)


def test_every_shape_is_known_after_canonicalisation():
    for family in ("vit", "swin_padded", "swinv2"):
        for node in canonical(family).graph:
            assert all(
                dim.value is not None if isinstance(dim, ir.SymbolicDim) else dim > 0
                for value in node.outputs
                for dim in value.shape
            )


def test_talking_heads_are_reported_with_the_reason():
    model = ir.from_proto(onnx.load_from_string(tiny.exported("cait")))
    unrecognised = dict(canonicalise_(model).unrecognised)
    assert "not a query-key product" in unrecognised["blocks.0.attn/Softmax"]


def test_a_softmax_at_the_output_is_reported():
    node = onnx.helper.make_node("Softmax", ["x"], ["y"], name="probabilities")
    unrecognised = canonicalise_(_model([node], [2, 4])).unrecognised
    assert unrecognised[0][0] == "probabilities"
    assert "a graph input" in unrecognised[0][1]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (("QuantizeLinear", ["x", "s"], ["y"]), "already quantised"),
        (("If", ["c"], ["y"]), "control flow"),
    ],
)
def test_quantised_and_branching_graphs_are_refused(node, message):
    op, inputs, outputs = node
    proto = onnx.helper.make_node(op, inputs, outputs, name="odd")
    if op == "If":
        const = onnx.helper.make_node("Constant", [], ["b"], value_float=1.0)
        out = onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [])
        branch = onnx.helper.make_graph([const], "branch", [], [out])
        proto.attribute.extend(
            onnx.helper.make_attribute(name, branch) for name in ("then_branch", "else_branch")
        )
    with pytest.raises(ModelError, match=message):
        canonicalise_(_model([proto], [2, 4], ["s", "c"]))


def _model(nodes, shape, extra=()):
    floats = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info("x", floats, shape)]
    inputs += [onnx.helper.make_tensor_value_info(name, floats, []) for name in extra]
    output = onnx.helper.make_tensor_value_info("y", floats, shape)
    graph = onnx.helper.make_graph(nodes, "g", inputs, [output])
    opsets = [onnx.helper.make_opsetid("", 20)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets))


def test_relative_error_sees_a_difference_that_a_constant_output_would_hide():
    model = canonical("vit")
    image = double.images(model)
    reference = double.run_reference(model, image.astype("f"))
    assert double.relative_error(reference + 1e-3, reference) > 1e-3
