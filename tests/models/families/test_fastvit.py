"""FastViT: re-parameterised, with the same function."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.models.conftest import TINY_FASTVIT
from vitdeploy.errors import ModelError
from vitdeploy.models import LoadOptions, load


def shake_(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and scales of a trained model."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def test_reparameterising_keeps_the_outputs(timm_folder, pictures):
    folder = timm_folder("fastvit_t8", TINY_FASTVIT, size=64)
    torch.manual_seed(0)
    reference = shake_(timm.create_model("fastvit_t8", num_classes=3, **TINY_FASTVIT))
    save_file(reference.state_dict(), folder / "model.safetensors")
    module = load(LoadOptions(str(folder))).parts[0].module

    def count(model: nn.Module) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())

    assert count(module) < count(reference)
    with torch.no_grad():
        # folding BatchNorm reorders float32 sums; 1e-4 is what the project promises
        torch.testing.assert_close(
            module(pictures(64)), reference(pictures(64)), atol=1e-4, rtol=1e-4
        )


def test_any_multiple_of_32_will_do(timm_folder, pictures):
    folder = timm_folder("fastvit_t8", TINY_FASTVIT, size=64)
    loaded = load(LoadOptions(str(folder), image_size=96))
    assert loaded.attention[0].tokens == 9
    assert "unchanged" in loaded.spec.notes[0]
    with pytest.raises(ModelError, match=r"multiples of 32 pixels\. Nearest: 64 or 96"):
        load(LoadOptions(str(folder), image_size=80))
