"""Folds written out compute what torch's do, and export without Col2Im."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.small_models import part_from_module
from vitdeploy.models.plain_folds import written_out_folds
from vitdeploy.onnx_export import check_parity, onnx_from_part
from vitdeploy.targets.onnx import runner_from_model

FOLDS = [
    {"output_size": (6, 8), "kernel_size": 2, "stride": 2},
    {"output_size": (6, 8), "kernel_size": (3, 2), "stride": (3, 2)},
    {"output_size": (6, 8), "kernel_size": 3, "stride": 2, "padding": 1},
    {"output_size": (7, 8), "kernel_size": (3, 4), "stride": (2, 1), "padding": (1, 0)},
    {"output_size": (7, 8), "kernel_size": 2, "stride": 2},  # the last row is in no patch
    {"output_size": (7, 7), "kernel_size": 3, "dilation": 2},
]
IDS = ["side by side", "pairs", "overlapping", "uneven", "a rest", "dilated"]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("more", FOLDS, ids=IDS)
def test_folds_and_unfolds_give_the_same(more):
    images = drawn(2, 3, *more["output_size"])
    of_patches = {name: value for name, value in more.items() if name != "output_size"}
    patches = functional.unfold(images, **of_patches)
    noise = drawn(*patches.shape)
    expected = functional.fold(noise, **more)
    with written_out_folds():
        assert torch.equal(functional.unfold(images, **of_patches), patches)
        torch.testing.assert_close(functional.fold(noise, **more), expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 1


def test_torchs_own_come_back_after_an_error():
    own = functional.fold, functional.unfold
    with pytest.raises(RuntimeError), written_out_folds():
        functional.fold(drawn(1, 5, 9), (6, 6), kernel_size=2, stride=2)
    assert (functional.fold, functional.unfold) == own


class Folded(nn.Module):
    """Patches as MobileViT v2 has them, and as VOLO adds them up."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        size = images.shape[-2:]
        patches = functional.unfold(images, kernel_size=2, stride=2).softmax(dim=-1)
        whole = functional.fold(patches, size, kernel_size=2, stride=2)
        around = functional.unfold(whole, kernel_size=3, stride=2, padding=1).sigmoid()
        whole = functional.fold(around, size, kernel_size=3, stride=2, padding=1)
        return whole[:, :, ::7, ::7].flatten(1)


@pytest.mark.parametrize("batch", ["dynamic", 1])
def test_they_export_without_col2im(batch):
    images = drawn(3, 3, 32, 32).numpy()
    part = part_from_module(Folded(), classes=75)
    model = onnx_from_part(part, images, batch, 20)
    assert "Col2Im" not in {node.op_type for node in model.graph}
    with runner_from_model(model) as runner:
        rows = check_parity(part, runner, images, [1] if batch == 1 else [2, 3])
    assert max(row.max_relative for row in rows) < 1e-5
