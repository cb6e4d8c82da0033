"""split_qkv_: three layers for one, the function unchanged."""

import pytest

from tests.graph.exactness import assert_exact, canonical, canonical_bytes
from vitdeploy.graph.attention import find_attention
from vitdeploy.graph.packed_qkv import split_qkv_


@pytest.mark.parametrize("family", ["vit", "swin", "fastvit", "eva02", "dinov3", "vit_qk_norm"])
def test_the_function_is_unchanged(family):
    def edit(model):
        assert split_qkv_(model) == []

    model = assert_exact(canonical_bytes(family), edit)
    assert not any(site.packed for site in find_attention(model))
    assert not any("qkv/MatMul" in node.name for node in model.graph)


def test_separate_layers_are_left_alone():
    model = canonical("hf_dinov2")
    before = [node.name for node in model.graph]
    assert split_qkv_(model) == []
    assert [node.name for node in model.graph] == before


def test_another_layout_is_refused():
    model = canonical("sam")  # (batch * heads, tokens, channels)
    ((_, reason), *_) = split_qkv_(model)
    assert "does not make (batch, heads, tokens, channels)" in reason
    assert all(site.packed for site in find_attention(model))
