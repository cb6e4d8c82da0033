"""Random weights: seeded, and the output depends on the input."""

import pytest
import timm
import torch
from torch import nn

from vitdeploy.errors import ModelError
from vitdeploy.models.random_weights import randomise_

from .conftest import TINY_FASTVIT, TINY_SWIN, TINY_VIT

MODELS = {
    "vit": ("vit_tiny_patch16_224", TINY_VIT, 32),
    "dinov2": ("vit_small_patch14_dinov2", {**TINY_VIT, "init_values": 1e-5}, 32),
    "swin": ("swin_tiny_patch4_window7_224", TINY_SWIN, 32),
    "swinv2": ("swinv2_tiny_window8_256", TINY_SWIN, 32),
    "fastvit": ("fastvit_t8", TINY_FASTVIT, 64),
}


def build(name: str, seed: int) -> tuple[nn.Module, int]:
    architecture, args, size = MODELS[name]
    torch.manual_seed(0)
    model = timm.create_model(architecture, **args).eval()
    randomise_(model, seed, size)
    return model, size


@pytest.mark.parametrize("name", MODELS)
def test_outputs_depend_on_the_input(name, pictures):
    model, size = build(name, 0)
    with torch.no_grad():
        first, second = model(pictures(size))
    assert torch.isfinite(first).all()
    # 0.999 is the promise; freshly initialised FastViT and DINOv2 are above 0.99999
    assert torch.cosine_similarity(first, second, dim=0) < 0.999
    assert first.std() > 0.05


@pytest.mark.parametrize("name", ["dinov2", "fastvit"])
def test_the_same_seed_gives_the_same_model(name):
    states = [build(name, seed)[0].state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_layer_scale_is_one_and_nothing_is_zero():
    model, _ = build("dinov2", 0)
    for name, parameter in model.named_parameters():
        assert float(parameter.detach().abs().max()) > 1e-3, name
        if name.endswith("gamma"):
            assert torch.equal(parameter, torch.ones_like(parameter))


def test_batchnorm_statistics_are_those_of_images():
    model, size = build("fastvit", 0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(not norm.training and norm.momentum == 0.1 for norm in norms)
    assert all(float((norm.running_var - 1).abs().max()) > 1e-3 for norm in norms)
    outputs: list[torch.Tensor] = []
    norms[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        model(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(9)))
    # the statistics fit: normalised activations are of order one, neither vanished nor exploded
    assert 0.05 < float(outputs[0].std()) < 20


def test_a_size_that_the_model_cannot_take_is_refused():
    class OneSize(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.norm(images) + torch.ones(1, 1, 7, 7)

    with pytest.raises(ModelError, match="does not run on an input of 32x32 pixels"):
        randomise_(OneSize(), 0, 32)
