"""Encoders that read patches or hide some give what transformers gives, from pictures alone."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tests.model_folders import shake_
from vitdeploy.models.picture_input import NaflexPictures, reading_pictures

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SIZE = 48


def encoder(model_type: str, **fields):
    config = AutoConfig.for_model(model_type, **SMALL, **fields)
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    shake_(model)
    return model


def run(model, *inputs, **named):
    with torch.no_grad():
        return model(*inputs, **named)


@pytest.mark.parametrize("has_head", [True, False])
def test_a_naflex_tower_reads_pictures(pictures, has_head):
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    model = encoder("siglip2_vision_model", num_patches=16, vision_use_head=has_head)
    images = pictures(SIZE)
    side = SIZE // 16
    expected = run(
        model,
        pixel_values=torch.stack([convert_image_to_patches(image, 16) for image in images]),
        pixel_attention_mask=torch.ones(2, side * side, dtype=torch.long),
        spatial_shapes=torch.tensor([[side, side]] * 2),
    )
    seen = run(reading_pictures(model, SIZE), images)
    # the same operators on the same numbers: no tolerance
    assert torch.equal(seen.last_hidden_state, expected.last_hidden_state)
    assert (seen.pooler_output is None) == (not has_head)
    if has_head:
        assert torch.equal(seen.pooler_output, expected.pooler_output)


def test_a_masked_autoencoder_sees_every_patch_in_order(pictures):
    model = encoder("vit_mae", image_size=SIZE, patch_size=16, mask_ratio=0.0)
    patches = (SIZE // 16) ** 2
    noise = torch.arange(patches, dtype=torch.float32).repeat(2, 1)
    expected = run(model, pictures(SIZE), noise=noise).last_hidden_state
    model.config.mask_ratio = 0.75
    assert run(model, pictures(SIZE)).last_hidden_state.shape[1] < 1 + patches
    whole = reading_pictures(model, SIZE)
    assert whole is model
    assert torch.equal(run(whole, pictures(SIZE)).last_hidden_state, expected)


def test_other_encoders_come_back_as_they_are():
    model = encoder("dinov2", image_size=SIZE, patch_size=16)
    assert reading_pictures(model, SIZE) is model
    assert not isinstance(reading_pictures(model, SIZE), NaflexPictures)
