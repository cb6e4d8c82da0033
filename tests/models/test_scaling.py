"""Costs by image size, against published tables and counts by hand."""

import dataclasses
import functools
import json

import pytest
import torch
from torch import nn

from tests.model_folders import shake_
from vitdeploy.cli import exit_code_from
from vitdeploy.errors import ModelError, UnsupportedError, UsageError
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.scaling import _Counting, cost_of, scaling_of


@functools.cache
def cost(source, size=None):
    return cost_of(load(LoadOptions(source, image_size=size, weightless=True)))


@pytest.mark.parametrize(
    ("source", "size", "million", "tokens", "gmacs"),
    [
        # DeiT (arXiv 2012.12877) table 5 and timm's results for the first, CLIP's model cards and
        # DINOv2 (arXiv 2304.07193) for the others; Swin (arXiv 2103.14030) table 1
        ("vit-base", 224, 86.6, 197, 17.6),
        ("timm:vit_large_patch14_clip_336.openai", 336, 304, 577, 191),
        ("timm:vit_huge_patch14_clip_224.laion2b", 224, 632, 257, 167),
        ("swin-base", 224, 88, 49, 15.4),
        ("swin-tiny", 224, 28.3, 49, 4.5),
    ],
)
def test_published_tables(source, size, million, tokens, gmacs):
    found = cost(source, size)
    assert found.tokens == tokens
    # the tables round to three digits, and some leave the classifier out
    assert found.gmacs == pytest.approx(gmacs, rel=6e-3)
    assert found.weight_bytes / 4e6 == pytest.approx(million, rel=6e-3)


def test_swin_is_linear_in_the_area_where_vit_is_quadratic():
    small, large = cost("swin-base", 224), cost("swin-base", 448)
    assert large.gmacs / small.gmacs == pytest.approx(4.0, rel=1e-3)
    assert large.attention_percent == pytest.approx(small.attention_percent, rel=1e-3)
    small, large = cost("vit-base", 224), cost("vit-base", 448)
    attention = [row.gmacs * row.attention_percent / 100 for row in (small, large)]
    assert attention[1] / attention[0] == pytest.approx((785 / 197) ** 2)
    # 12 layers, two products of 197 x 197 x 768
    assert attention[0] == pytest.approx(12 * 2 * 197**2 * 768 / 1e9)
    rest = [row.gmacs - part for row, part in zip((small, large), attention, strict=True)]
    assert rest[1] / rest[0] == pytest.approx(4.0, rel=5e-3)  # the class token, the classifier


def test_attention_dominates_where_tokens_exceed_six_widths(timm_folder):
    args = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    found = scaling_of(LoadOptions(str(timm_folder("vit_tiny_patch16_224", args))), (32, 64))
    # 2 T^2 C > 12 T C^2 from T = 6 C = 96 tokens: 39.2 pixels. The patches' share of the work,
    # 48 C a token against 24 C^2, moves it to T = 6 C + 48 / 4: 41.6 pixels
    assert found.attention_dominates_at == pytest.approx(41.6, rel=0.02)
    assert [row.tokens for row in found.rows] == [65, 257]


@pytest.mark.parametrize("source", ["swin-tiny", "timm:resnet18"])
def test_windows_and_convolutions_never_dominate(source):
    assert scaling_of(LoadOptions(source), ()).attention_dominates_at is None


def test_memory_is_what_is_alive_at_once():
    # (1, 3, 8, 8) -> 192 -> 1000 -> 10: while the wide layer runs, its input and output live
    layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 1000), nn.ReLU(), nn.Linear(1000, 10))
    layers = layers.to("meta")
    with torch.no_grad(), _Counting(layers) as counting:
        pixels = torch.empty(1, 3, 8, 8, device="meta")
        counting.hold(pixels)
        layers(pixels)
    assert counting.macs == 192 * 1000 + 1000 * 10
    assert counting.attention_macs == 0
    # input 192, both sides of the ReLU
    assert counting.peak_bytes == 4 * (192 + 1000 + 1000)


def test_a_structure_without_weights_is_that_of_the_model(timm_folder):
    options = LoadOptions(str(timm_folder()))
    whole, bare = load(options), load(dataclasses.replace(options, weightless=True))
    assert bare.spec.weights == "none"
    assert all(p.device.type == "meta" for p in bare.parts[0].module.parameters())
    assert whole.attention == bare.attention
    assert whole.parts[0].outputs == bare.parts[0].outputs
    assert cost_of(whole) == cost_of(bare)


def test_reparameterised_models_are_counted_as_exported(timm_folder):
    from .conftest import TINY_FASTVIT

    folder = timm_folder("fastvit_t8", TINY_FASTVIT, size=64)
    bare = cost_of(load(LoadOptions(str(folder), weightless=True)))
    module = load(LoadOptions(str(folder))).parts[0].module
    shake_(module)
    assert bare.weight_bytes == 4 * sum(p.numel() for p in module.parameters())


def test_sizes_a_model_cannot_take_are_refused():
    with pytest.raises(ModelError, match="multiples of 16"):
        scaling_of(LoadOptions("vit-tiny"), (225,))
    with pytest.raises(UsageError, match="made for one image size"):
        scaling_of(LoadOptions("model.onnx"), (224,))
    with pytest.raises(UnsupportedError, match="figures from shapes alone"):
        scaling_of(LoadOptions("sam-vitb"), (1024,))


def test_the_command_compares_sizes(timm_folder, capsys):
    command = ["inspect", str(timm_folder()), "--sizes"]
    assert exit_code_from([*command, "32,64", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["tokens"] for row in shown["rows"]] == [17, 65]
    assert exit_code_from([*command, "32", "--outputs", "cls"]) == 0
    assert "Attention is more than half of the work from about" in capsys.readouterr().err
    for wrong in ("224x", "", "224,99999"):
        assert exit_code_from([*command, wrong]) == 2
    assert exit_code_from([*command, "32", "--image-size", "32"]) == 2
