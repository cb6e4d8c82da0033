"""Shapes and attention sites, found without computing."""

import pytest
import timm
import torch
from torch import nn

from vitdeploy.errors import ModelError
from vitdeploy.models.trace import meta_copy, trace

from .conftest import TINY_FASTVIT, TINY_SWIN, TINY_VIT


def test_the_copy_has_no_weights_and_leaves_the_model_alone():
    model = timm.create_model("fastvit_t8", **TINY_FASTVIT).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied = meta_copy(model)
    copied(torch.empty(1, 3, 64, 64, device="meta"))
    assert all(value.device.type == "meta" for value in copied.state_dict().values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_vit_sites():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **TINY_VIT).eval()
    found = trace(model, 32)
    assert found.outputs == ((1, 3),)
    assert [site.path for site in found.attention] == ["blocks.0.attn", "blocks.1.attn"]
    site = found.attention[0]
    assert (site.qkv, site.proj) == (("blocks.0.attn.qkv",), "blocks.0.attn.proj")
    assert (site.num_heads, site.head_dim, site.tokens) == (2, 16, 17)  # 4 x 4 patches, class token
    assert site.per_head == ()


@pytest.mark.parametrize(
    ("architecture", "per_head"),
    [
        ("swin_tiny_patch4_window7_224", {"relative_position_bias_table"}),
        ("swinv2_tiny_window8_256", {"logit_scale", "cpb_mlp.2.weight"}),
    ],
)
def test_swin_sites_are_windows_and_have_entries_per_head(architecture, per_head):
    model = timm.create_model(architecture, **TINY_SWIN).eval()
    sites = trace(model, 32).attention
    assert len(sites) == 4
    assert {site.tokens for site in sites} == {16}  # windows of 4 x 4
    for site in sites:
        assert {name.removeprefix(f"{site.path}.") for name in site.per_head} == per_head
        for name in site.per_head:
            assert site.num_heads in model.get_parameter(name).shape


def test_fastvit_sites_are_in_the_attention_stage_only():
    model = timm.create_model("fastvit_t8", **TINY_FASTVIT).eval()
    (site,) = trace(model, 64).attention
    assert site.path.startswith("stages.3.")
    assert (site.num_heads, site.head_dim, site.tokens) == (1, 32, 4)


def test_a_model_with_tensors_outside_its_buffers_is_run_for_real():
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [torch.ones(2)]

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))[:, :2] * self.hidden[0].to(images.device) / len(images)

    assert trace(Stubborn().eval(), 8).outputs == ((1, 2),)


def test_models_that_do_not_run_or_return_no_tensors_are_refused():
    with pytest.raises(ModelError, match="does not run on an input of 8x8"):
        trace(nn.Linear(3, 3), 8)

    class Dictionary(nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": images}

    with pytest.raises(ModelError, match="not tensors"):
        trace(Dictionary(), 8)
