"""Models of timm that belong to no other family."""

import pytest

from vitdeploy.errors import ModelError
from vitdeploy.models import LoadOptions, load


def test_a_model_without_patches_takes_other_sizes(timm_folder):
    folder = timm_folder("resnet18", {}, size=64)
    loaded = load(LoadOptions(str(folder), image_size=96, random_weights=True))
    assert (loaded.spec.family, loaded.spec.preprocess.size) == ("timm", (96, 96))
    features = load(LoadOptions(str(folder), outputs="features", random_weights=True))
    assert features.parts[0].outputs[0].shape == ("batch", 4, 512)


def test_a_model_with_patches_is_asked_for_multiples(timm_folder):
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    folder = timm_folder("vit_relpos_small_patch16_224", args)
    assert load(LoadOptions(str(folder), image_size=64, random_weights=True)).attention
    with pytest.raises(ModelError, match="multiples of 8"):
        load(LoadOptions(str(folder), image_size=60, random_weights=True))
