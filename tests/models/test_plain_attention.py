"""Attention written out computes what torch's fused operator does, in the forms that it takes."""

import pytest
import torch
from torch.nn import functional

from tests.small_models import part_from_module
from vitdeploy.models.plain_attention import written_out_attention
from vitdeploy.onnx_export import check_parity, onnx_from_part
from vitdeploy.targets.onnx import runner_from_model

TOLERANCE = 2e-6
"""Float32 sums of 8 and 6 products in another order."""


def drawn(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(3)]


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((2, 3, 6, 8), {}),
        ((2, 3, 4, 6, 8), {}),
        ((2, 3, 6, 8), {"scale": 0.7}),
        ((2, 3, 6, 8), {"attn_mask": torch.linspace(-2, 2, 36).reshape(1, 1, 6, 6)}),
    ],
    ids=["plain", "five axes", "scale", "added mask"],
)
def test_products_give_the_same(shape, more):
    query, key, value = drawn(*shape)
    expected = functional.scaled_dot_product_attention(query, key, value, **more)
    with written_out_attention():
        seen = functional.scaled_dot_product_attention(query, key, value, **more)
    assert (seen - expected).abs().max() < TOLERANCE
    assert not torch.equal(seen, torch.zeros_like(seen))


@pytest.mark.parametrize(
    "more",
    [
        {"is_causal": True},
        {"attn_mask": torch.zeros(6, 6, dtype=torch.bool)},
        {"dropout_p": 1.0},
    ],
    ids=["causal", "all masked", "dropout"],
)
def test_other_requests_are_left_to_torch(more):
    query, key, value = drawn(2, 3, 6, 8)
    expected = functional.scaled_dot_product_attention(query, key, value, **more)
    with written_out_attention():
        seen = functional.scaled_dot_product_attention(query, key, value, **more)
    assert torch.equal(seen, expected)


def test_torchs_own_comes_back_after_an_error():
    fused = functional.scaled_dot_product_attention
    query, key, value = drawn(2, 3, 6, 8)
    with pytest.raises(RuntimeError), written_out_attention():
        functional.scaled_dot_product_attention(query, key[..., :5], value)
    assert functional.scaled_dot_product_attention is fused


class Windows(torch.nn.Module):
    """Hiera's attention over (batch, heads, windows, tokens, channels), with BEiT's added bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.nn.Linear(3, 36)
        self.bias = torch.nn.Parameter(torch.randn(16, 16))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = pixels[:, :, ::4, ::4].flatten(2).transpose(1, 2)
        packed = self.qkv(tokens).reshape(-1, 16, 4, 3, 2, 6).permute(3, 0, 4, 2, 1, 5)
        query, key, value = packed.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        return mixed.transpose(1, 3).reshape(-1, 64, 12).mean(1)


def test_what_the_exporter_does_not_translate_is_exported():
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).numpy()
    part = part_from_module(Windows(), classes=12)
    model = onnx_from_part(part, images, "dynamic", 20)
    with runner_from_model(model) as runner:
        rows = check_parity(part, runner, images, [2, 3])
    assert max(row.max_relative for row in rows) < 1e-5
