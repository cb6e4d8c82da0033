"""split_qkv_: three layers for one, the function unchanged."""

import numpy as np
import pytest

from tests.graph.exactness import assert_exact, canonical, canonical_bytes
from tests.small_models import timm_part
from vitdeploy.graph.attention import find_attention
from vitdeploy.graph.packed_qkv import split_qkv_
from vitdeploy.onnx_export import onnx_from_part
from vitdeploy.targets.onnx import runner_from_model


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


def test_keys_and_values_that_are_packed_without_the_query_are_split_too():
    """Attention pooling: the query comes from a learnt token."""
    pooling = {"class_token": False, "global_pool": "map", "depth": 1, "num_heads": 2}
    part = timm_part(
        "vit_base_patch16_siglip_224", img_size=32, patch_size=8, embed_dim=32, **pooling
    )
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    model = onnx_from_part(part, pixels, "dynamic", 20)
    with runner_from_model(model) as runner:
        expected = runner({"pixel_values": pixels})["logits"]
    assert split_qkv_(model) == []
    assert not any(site.packed for site in find_attention(model))
    names = {node.name for node in model.graph}
    assert {f"attn_pool.{n}/MatMul" for n in ("q", "kv.key", "kv.value")} <= names
    assert "attn_pool.kv/MatMul" not in names
    with runner_from_model(model) as runner:
        # the same float32 sums, column by column
        np.testing.assert_allclose(runner({"pixel_values": pixels})["logits"], expected, atol=1e-5)
