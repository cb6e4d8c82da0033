"""DINOv3: rotary positions follow the image size."""

import pytest
import torch

from vitdeploy.errors import ModelError
from vitdeploy.models import LoadOptions, load

TINY = {"img_size": 64, "embed_dim": 32, "depth": 1, "num_heads": 2}
NAME = "vit_small_patch16_dinov3"


@pytest.mark.parametrize("size", [None, 96])
def test_features_at_its_own_and_another_size(timm_folder, pictures, size):
    folder = timm_folder(NAME, TINY, classes=0, size=64)
    loaded = load(LoadOptions(str(folder), random_weights=True, image_size=size))
    assert loaded.spec.family == "dinov3"
    side = (size or 64) // 16
    assert loaded.attention[0].tokens == side**2 + 5  # class token and four registers
    with torch.no_grad():
        sequence, _ = loaded.parts[0].module(pictures(size or 64))
    assert sequence.shape == (2, side**2 + 5, 32)


def test_sizes_it_cannot_take_are_refused(timm_folder):
    folder = timm_folder(NAME, TINY, classes=0, size=64)
    with pytest.raises(ModelError, match="multiples of 16"):
        load(LoadOptions(str(folder), image_size=70))
