"""Attention sites: the right channels, whatever the layout, and reasons where there is none."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graph import tiny
from tests.graph.exactness import canonical
from vitdeploy.graph.attention import find_attention, recognise_attention
from vitdeploy.graph.cleanup import normalise_storage_

# family: packed, RoPE, QK-norm, biases before the softmax of the last site
TRAITS = {
    "vit": (True, False, False, 0),
    "vit_qk_norm": (True, False, True, 0),
    "swin": (True, False, False, 1),
    "swinv2": (True, False, True, 1),
    "fastvit": (True, False, False, 0),
    "eva02": (True, True, False, 0),
    "dinov3": (True, True, False, 0),
    "eva_qk_norm": (True, True, True, 0),
    "cait": (False, False, False, 0),
    "hf_dinov2": (False, False, False, 0),
    "sam": (True, False, False, 1),
}


@pytest.mark.parametrize("family", list(TRAITS))
def test_traits(family):
    site = find_attention(canonical(family))[-1]
    found = (site.packed, site.has_rope, site.has_qk_norm, len(site.bias_nodes))
    assert found == TRAITS[family]
    assert site.output is not None
    assert site.num_heads * site.head_dim == site.output.in_channels
    assert np.array_equal(np.sort(site.output_rows.reshape(-1)), np.arange(site.output.in_channels))


def test_packed_columns_are_those_of_timm():
    site = find_attention(canonical("vit"))[0]
    columns = np.arange(144).reshape(3, 3, 16)  # (role, head, channel)
    assert np.array_equal(site.query.columns, columns[0])
    assert np.array_equal(site.key.columns, columns[1])
    assert np.array_equal(site.value.columns, columns[2])
    assert np.array_equal(site.output_rows, columns[0])
    assert site.name == "blocks.0.attn"


def test_a_shifted_window_has_bias_and_mask():
    site = find_attention(canonical("swin"))[1]
    assert len(site.bias_nodes) == 2


@pytest.mark.parametrize(("family", "scale"), [("vit", 0.25), ("swin", 12**-0.5), ("eva02", 0.25)])
def test_the_scale_of_a_raw_export(family, scale):
    model = ir.from_proto(onnx.load_from_string(tiny.exported(family)))
    normalise_storage_(model)
    site = find_attention(model)[0]
    assert site.scale == pytest.approx(scale, rel=1e-6)  # float32 constants
    assert site.scale_nodes


def test_interleaved_heads_are_followed():
    """Channels packed as (head, role, channel), as in BLOOM or Megatron, give other columns."""
    site = find_attention(_packed("[0, 2, 1, 3]", reshape=(-1, 5, 2, 12)))[0]
    columns = np.arange(24).reshape(2, 3, 4)  # (head, role, channel)
    assert np.array_equal(site.query.columns, columns[:, 0])
    assert np.array_equal(site.value.columns, columns[:, 2])


def _packed(perm, reshape):
    body = f"""
      l = MatMul (x, w) r = Reshape (l, s) t = Transpose <perm = {perm}> (r)
      q, k, v = Split <axis = 3, num_outputs = 3> (t)
      kt = Transpose <perm = [0, 1, 3, 2]> (k)
      a = MatMul (q, kt) p = Softmax (a) c = MatMul (p, v)
      ct = Transpose <perm = [0, 2, 1, 3]> (c) cr = Reshape (ct, o) y = MatMul (cr, w2)
    """
    head = "(float[batch, 5, 8] x) => (float[batch, 5, 8] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {head} {{{body}}}')
    draw = np.random.default_rng(0)
    arrays = {
        "w": draw.standard_normal((8, 24)).astype(np.float32),
        "s": np.array(reshape),
        "o": np.array([-1, 5, 8]),
        "w2": draw.standard_normal((8, 8)).astype(np.float32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    ("family", "reason"), [("cait", "not a query-key product"), ("classic_post_norm", None)]
)
def test_what_is_no_attention_is_reported(family, reason):
    refused = recognise_attention(canonical(family))[1]
    assert (reason is None and not refused) or reason in refused[0][1]


def test_an_attention_map_that_is_an_output_is_reported():
    model = canonical("vit")
    softmax = find_attention(model)[0].softmax
    model.graph.outputs.append(softmax.outputs[0])
    sites, refused = recognise_attention(model)
    assert len(sites) == 1
    assert "read by more than one node or by an output" in refused[0][1]


def test_query_and_key_of_two_layers_summed_are_reported():
    model = _packed("[0, 2, 1, 3]", reshape=(-1, 5, 2, 12))
    # a softmax above which stands a Relu
    (site,) = find_attention(model)
    relu = ir.node("Relu", [site.softmax.inputs[0]], name="relu")
    relu.outputs[0].name = "relu_output"
    model.graph.insert_before(site.softmax, relu)
    site.softmax.replace_input_with(0, relu.outputs[0])
    assert "Relu relu" in recognise_attention(model)[1][0][1]
