"""What the exportable part returns, and under which name."""

import pytest
import timm
import torch

from vitdeploy.errors import UsageError
from vitdeploy.models.outputs import TimmFeatures, as_tokens, choose_outputs

from .conftest import TINY_FASTVIT, TINY_SWIN, TINY_VIT


def test_tokens_are_read_row_by_row():
    maps = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    tokens = as_tokens(maps, channels_last=False)
    assert tokens.shape == (2, 4, 3)
    assert torch.equal(tokens[0, 1], maps[0, :, 0, 1])
    assert torch.equal(as_tokens(maps.permute(0, 2, 3, 1), channels_last=True), tokens)
    assert as_tokens(tokens, channels_last=False) is tokens


@pytest.mark.parametrize(
    ("architecture", "args", "size", "tokens"),
    [
        ("vit_tiny_patch16_224", TINY_VIT, 32, 17),
        ("swin_tiny_patch4_window7_224", TINY_SWIN, 32, 64),
        ("fastvit_t8", TINY_FASTVIT, 64, 4),
    ],
)
def test_features_lead_to_the_logits(architecture, args, size, tokens, pictures):
    model = timm.create_model(architecture, num_classes=5, **args).eval()
    images = pictures(size)
    with torch.no_grad():
        sequence, pooled = TimmFeatures(model)(images)
        head = model.get_classifier()
        assert torch.allclose(head(pooled), model(images), atol=1e-6)  # the same arithmetic
    assert sequence.shape[:2] == (2, tokens)


def test_outputs_default_to_what_the_model_has():
    assert choose_outputs(None, "x", has_classifier=True) == "logits"
    assert choose_outputs(None, "x", has_classifier=False) == "features"
    assert choose_outputs("features", "x", has_classifier=True) == "features"
    with pytest.raises(UsageError, match="x has no classifier"):
        choose_outputs("logits", "x", has_classifier=False)
