"""Surgery on modules: what it refuses, and blocks. What it computes is in test_prune."""

import pytest
import torch
from torch import nn

from tests.prunable_models import noise, outputs_of, prunable
from vitdeploy.errors import CompressionError
from vitdeploy.models.mlp_sites import find_mlp_sites
from vitdeploy.models.surgery import (
    block_of,
    keep_channels_,
    keep_heads_,
    remove_blocks_,
    unprunable_heads,
)
from vitdeploy.models.trace import find_attention_sites


@pytest.mark.parametrize("kept", [(), (1, 0), (0, 0), (4,), (-1,)])
def test_impossible_heads_and_channels_are_refused(kept):
    loaded = prunable("vit")
    module = loaded.parts[0].module
    with pytest.raises(CompressionError, match="of 4 heads of 'blocks"):
        keep_heads_(module, loaded.attention[0], kept)
    with pytest.raises(CompressionError, match="of 128 channels of 'blocks"):
        keep_channels_(module, find_mlp_sites(module)[0], kept if kept != (4,) else (128,))


def test_parameters_that_were_frozen_stay_frozen_and_get_memory_of_their_own():
    loaded = prunable("vit")
    module = loaded.parts[0].module
    module.blocks[0].attn.qkv.weight.requires_grad_(False)
    before = module.blocks[0].attn.qkv.weight
    keep_heads_(module, loaded.attention[0], (0, 3))
    after = module.blocks[0].attn.qkv.weight
    assert (before.requires_grad, after.requires_grad) == (False, False)
    assert after.shape == (48, 32)
    assert after.untyped_storage().size() == 48 * 32 * 4  # bytes: no view into the whole weight
    assert module.blocks[0].attn.proj.weight.requires_grad


def test_a_removed_block_is_one_the_others_close_over():
    loaded = prunable("vit")
    module, images = loaded.parts[0].module, noise(loaded)
    blocks = list(module.blocks)
    remove_blocks_(module, ("blocks.1",))
    assert list(module.blocks) == [blocks[0], blocks[2]]
    seen = outputs_of(module, images)[0]
    module.blocks = nn.Sequential(blocks[0], nn.Identity(), blocks[2])
    assert torch.equal(outputs_of(module, images)[0], seen)


def test_blocks_that_cannot_go_are_refused():
    module = prunable("vit").parts[0].module
    with pytest.raises(CompressionError, match="removing 3 of 3 blocks"):
        remove_blocks_(module, (f"blocks.{i}" for i in range(3)))
    with pytest.raises(CompressionError, match="there is no block 'blocks"):
        remove_blocks_(module, ("blocks.3",))
    with pytest.raises(CompressionError, match="not a numbered block"):
        remove_blocks_(module, ("blocks",))


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("blocks.0.attn", "blocks.0"),
        ("model.layers.1.blocks.3.attn.self", "model.layers.1.blocks.3"),
        ("attn", None),
    ],
)
def test_the_block_of_a_layer(path, block):
    assert block_of(path) == block


def test_shared_keys_and_gated_outputs_are_told_apart():
    from timm.layers import AttentionRope

    loaded = prunable("vit")
    module, site = loaded.parts[0].module, loaded.attention[0]
    assert unprunable_heads(module, site) is None
    module.blocks[0].attn = AttentionRope(32, 4, gated=True)
    assert "gate" in str(unprunable_heads(module, site))


def test_values_wider_than_keys_are_not_taken_for_thirds():
    """EfficientFormer's layer gives each head 32 channels of q, 32 of k and 128 of v."""
    from timm.models.efficientformer import Attention

    module = nn.Sequential(Attention(dim=64, num_heads=2))
    site = next(iter(find_attention_sites(module)))
    assert site.head_dim * site.num_heads * 3 == module.get_submodule(site.qkv[0]).out_features
    assert "wider than its keys" in str(unprunable_heads(module, site))
