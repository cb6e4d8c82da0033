"""fuse_attention_: ONNX Runtime's operator, the function unchanged."""

import numpy as np
import pytest

from tests.graph import double
from tests.graph.exactness import canonical
from vitdeploy.graph.attention import find_attention
from vitdeploy.graph.fused_attention import fuse_attention_
from vitdeploy.graph.packed_qkv import split_qkv_


def operators(model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("family", ["vit", "dinov2_reg", "clip", "hf_vit", "hf_dinov2"])
def test_the_function_is_unchanged(family):
    model = canonical(family)
    image = double.images(model).astype(np.float32)
    expected = double.run_ort(model, image)
    split_qkv_(model)
    sites = find_attention(model)
    assert fuse_attention_(model, sites) == []
    assert operators(model).count("MultiHeadAttention") == len(sites) > 0
    assert "Softmax" not in operators(model)
    assert double.relative_error(double.run_ort(model, image), expected) <= double.FLOAT32_LIMIT


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("swin", "something is added to its scores"),
        ("dinov3", "q and k do not reach their product"),
        ("vit_qk_norm", "q and k do not reach their product"),
        ("sam", "something is added to its scores"),
    ],
)
def test_what_the_operator_does_not_do_stays_as_it_is(family, reason):
    model = canonical(family)
    split_qkv_(model)
    before = operators(model)
    refused = fuse_attention_(model, find_attention(model))
    assert len(refused) == before.count("Softmax")
    assert all(reason in why for _, why in refused)
    assert operators(model) == before
    assert "com.microsoft" not in model.opset_imports


def test_packed_layers_are_refused():
    model = canonical("vit")
    ((_, reason), *_) = fuse_attention_(model, find_attention(model))
    assert "not of three layers" in reason
