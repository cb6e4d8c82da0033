"""ViT: image sizes."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from vitdeploy.errors import ModelError
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.families import vit


def test_names_of_the_family():
    assert vit.owns("vit_base_patch16_384")
    for other in ("vit_small_patch14_dinov2", "vit_relpos_base_patch16_224", "resnet18"):
        assert not vit.owns(other)


def test_an_image_size_resamples_the_positions(timm_folder, pictures):
    folder = timm_folder()
    native = load(LoadOptions(str(folder))).parts[0].module
    loaded = load(LoadOptions(str(folder), image_size=48))
    module = loaded.parts[0].module
    expected = resample_abs_pos_embed(native.pos_embed, new_size=(6, 6), old_size=(4, 4))
    assert torch.equal(module.pos_embed, expected)
    assert torch.equal(module.cls_token, native.cls_token)
    assert loaded.parts[0].inputs[0].shape == ("batch", 3, 48, 48)
    assert loaded.attention[0].tokens == 37
    assert loaded.spec.preprocess.size == (48, 48)
    assert len(loaded.spec.notes) == 1
    assert module(pictures(48)).shape == (2, 3)


def test_past_twice_the_size_it_warns(timm_folder):
    loaded = load(LoadOptions(str(timm_folder()), image_size=72))
    assert "more than twice" in loaded.spec.notes[-1]


@pytest.mark.parametrize(("size", "near"), [(50, "48 or 56"), (3, "8")])
def test_sizes_it_cannot_take_are_refused(timm_folder, size, near):
    with pytest.raises(ModelError, match=f"multiples of 8 pixels. Nearest: {near}"):
        load(LoadOptions(str(timm_folder()), image_size=size))
