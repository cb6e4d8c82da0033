"""DINOv2: features, registers, sizes."""

import pytest
import torch

from tests.models.conftest import TINY_VIT
from vitdeploy.errors import UsageError
from vitdeploy.models import LoadOptions, load, resolve
from vitdeploy.models.families import dinov2

REGISTERS = "vit_small_patch14_reg4_dinov2"


def test_both_features_by_default(timm_folder, pictures):
    folder = timm_folder(REGISTERS, TINY_VIT, classes=0)
    loaded = load(LoadOptions(str(folder), random_weights=True))
    assert (loaded.spec.family, loaded.spec.task) == ("dinov2", "features")
    shapes = {out.name: out.shape for out in loaded.parts[0].outputs}
    tokens = 1 + 4 + 16  # class token, registers, patches
    assert shapes == {"last_hidden_state": ("batch", tokens, 32), "pooler_output": ("batch", 32)}
    with torch.no_grad():
        sequence, pooled = loaded.parts[0].module(pictures(32))
    assert torch.equal(sequence[:, 0], pooled)  # the pooled output is the class token
    for output in (sequence, pooled):
        first, second = output.flatten(1)
        assert torch.cosine_similarity(first, second, dim=0) < 0.999


def test_registers_have_no_position_to_resample(timm_folder):
    folder = timm_folder(REGISTERS, TINY_VIT, classes=0)
    module = load(LoadOptions(str(folder), image_size=64)).parts[0].module.model
    assert module.pos_embed.shape == (1, 64, 32)


def test_logits_are_refused(timm_folder):
    folder = timm_folder(REGISTERS, TINY_VIT, classes=0)
    with pytest.raises(UsageError, match="no classifier"):
        load(LoadOptions(str(folder), outputs="logits"))


def test_the_default_size_is_the_models_own():
    assert resolve("dinov2-small").image_size == 518
    assert dinov2.owns(REGISTERS)
    assert not dinov2.owns("vit_small_patch16_224")
