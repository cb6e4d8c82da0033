"""DeiT: one `logits`, the mean of both heads."""

import torch

from tests.models.conftest import TINY_VIT
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.families import deit


def test_the_distilled_model_averages_its_heads(timm_folder, pictures):
    folder = timm_folder("deit_tiny_distilled_patch16_224", TINY_VIT)
    loaded = load(LoadOptions(str(folder)))
    assert loaded.spec.family == "deit"
    assert loaded.attention[0].tokens == 18
    model = loaded.parts[0].module
    with torch.no_grad():
        tokens = model.forward_features(pictures(32))
        expected = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
        torch.testing.assert_close(model(pictures(32)), expected)


def test_names_of_the_family():
    assert deit.owns("deit3_base_patch16_224")
    assert not deit.owns("vit_base_patch16_224")
