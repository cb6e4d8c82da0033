"""A tiny MobileSAM checkpoint in the publisher's layout, and plain functions of it."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.models.segment_anything.publisher import Shape, Size, Weights, decoder_shapes, neck

TRUNK = {
    "embed_dims": (16, 32, 40, 64),
    "depths": (1, 1, 2, 1),
    "num_heads": (1, 2, 2, 4),
    "window_sizes": (7, 7, 14, 7),
}
"""Of timm's TinyViT. At 128 pixels: windows larger than the map, and ones that need padding."""
SIZE = Size(channels=256, decoder_heads=8, decoder_mlp=2048)


def draw_mobile_checkpoint() -> Weights:
    """All tensors random; running variances positive."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in (*_encoder_shapes(), *decoder_shapes(SIZE)):
        noise = torch.randn(shape, generator=generator)
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        scale = len(shape) == 1 and name.endswith("weight")
        weights[name] = 1 + 0.2 * noise if scale else noise * min(0.5, fan_in**-0.5)
        if name.endswith("running_var"):
            weights[name] = 0.5 + torch.rand(shape, generator=generator)
    # the classifier that the publisher's file still has
    weights["image_encoder.norm_head.weight"] = torch.ones(64)
    weights["image_encoder.norm_head.bias"] = torch.ones(64)
    weights["image_encoder.head.weight"] = torch.ones(10, 64)
    weights["image_encoder.head.bias"] = torch.ones(10)
    return weights


def _encoder_shapes() -> Iterator[tuple[str, Shape]]:
    e, widths = "image_encoder", TRUNK["embed_dims"]
    yield from _conv(f"{e}.patch_embed.seq.0", widths[0] // 2, 3, 3)
    yield from _conv(f"{e}.patch_embed.seq.2", widths[0], widths[0] // 2, 3)
    for stage, width in enumerate(widths):
        for block in range(TRUNK["depths"][stage]):
            name = f"{e}.layers.{stage}.blocks.{block}"
            if stage == 0:
                yield from _conv(f"{name}.conv1", 4 * width, width, 1)
                yield from _conv(f"{name}.conv2", 4 * width, 1, 3)
                yield from _conv(f"{name}.conv3", width, 4 * width, 1)
                continue
            yield from _pair(f"{name}.attn.norm", width)
            yield from _pair(f"{name}.attn.qkv", 3 * width, width)
            yield from _pair(f"{name}.attn.proj", width, width)
            offsets = TRUNK["window_sizes"][stage] ** 2
            yield f"{name}.attn.attention_biases", (TRUNK["num_heads"][stage], offsets)
            yield from _pair(f"{name}.mlp.norm", width)
            yield from _pair(f"{name}.mlp.fc1", 4 * width, width)
            yield from _pair(f"{name}.mlp.fc2", width, 4 * width)
            yield from _conv(f"{name}.local_conv", width, 1, 3)
        if stage < 3:
            out = widths[stage + 1]
            yield from _conv(f"{e}.layers.{stage}.downsample.conv1", out, width, 1)
            yield from _conv(f"{e}.layers.{stage}.downsample.conv2", out, 1, 3)
            yield from _conv(f"{e}.layers.{stage}.downsample.conv3", out, out, 1)
    yield f"{e}.neck.0.weight", (SIZE.channels, widths[-1], 1, 1)
    yield from _pair(f"{e}.neck.1", SIZE.channels)
    yield f"{e}.neck.2.weight", (SIZE.channels, SIZE.channels, 3, 3)
    yield from _pair(f"{e}.neck.3", SIZE.channels)


def _pair(name: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _conv(name: str, out: int, into: int, kernel: int) -> Iterator[tuple[str, Shape]]:
    """A convolution without bias and its BatchNorm."""
    yield f"{name}.c.weight", (out, into, kernel, kernel)
    for kind in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.bn.{kind}", (out,)


# --- what the checkpoint computes (TinyViT, arXiv 2207.10666; the last stage keeps its resolution)


def image_encoder(w: Weights, pixels: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, channels, H / 16, W / 16)."""
    e = "image_encoder"
    x = _convolved(w, f"{e}.patch_embed.seq.0", pixels, stride=2)
    x = _convolved(w, f"{e}.patch_embed.seq.2", F.gelu(x), stride=2)
    for stage, depth in enumerate(TRUNK["depths"]):
        for block in range(depth):
            name = f"{e}.layers.{stage}.blocks.{block}"
            x = _inverted(w, name, x) if stage == 0 else _transformed(w, name, stage, x)
        if stage < 3:
            d = f"{e}.layers.{stage}.downsample"
            x = F.gelu(_convolved(w, f"{d}.conv1", x))
            x = F.gelu(_convolved(w, f"{d}.conv2", x, stride=1 if stage == 2 else 2))
            x = _convolved(w, f"{d}.conv3", x)
    return neck(w, x, f"{e}.neck")


def _convolved(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = w[f"{name}.c.weight"]
    groups = x.shape[1] // kernel.shape[1]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
    mean, variance, scale, shift = (
        w[f"{name}.bn.{kind}"][:, None, None]
        for kind in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def _inverted(w: Weights, name: str, x: Tensor) -> Tensor:
    hidden = F.gelu(_convolved(w, f"{name}.conv1", x))
    hidden = F.gelu(_convolved(w, f"{name}.conv2", hidden))
    return F.gelu(x + _convolved(w, f"{name}.conv3", hidden))


def _transformed(w: Weights, name: str, stage: int, x: Tensor) -> Tensor:
    x = x + _in_windows(w, f"{name}.attn", stage, x)
    x = _convolved(w, f"{name}.local_conv", x)
    rows = x.permute(0, 2, 3, 1)
    hidden = F.gelu(_applied(w, f"{name}.mlp.fc1", _normed(w, f"{name}.mlp.norm", rows)))
    return x + _applied(w, f"{name}.mlp.fc2", hidden).permute(0, 3, 1, 2)


def _in_windows(w: Weights, name: str, stage: int, x: Tensor) -> Tensor:
    """Window by window, each cut out on its own; what lies outside the map is zero."""
    side, (_, channels, height, width) = TRUNK["window_sizes"][stage], x.shape
    out = torch.zeros_like(x)
    for top in range(0, height, side):
        for left in range(0, width, side):
            cut = x[:, :, top : top + side, left : left + side]
            window = torch.zeros(len(x), channels, side, side)
            window[:, :, : cut.shape[2], : cut.shape[3]] = cut
            done = _attention(w, name, stage, window)[:, :, : cut.shape[2], : cut.shape[3]]
            out[:, :, top : top + side, left : left + side] = done
    return out


def _attention(w: Weights, name: str, stage: int, x: Tensor) -> Tensor:
    heads, (n, channels, side, _) = TRUNK["num_heads"][stage], x.shape
    rows = _normed(w, f"{name}.norm", x.flatten(2).transpose(1, 2))
    each = _applied(w, f"{name}.qkv", rows).reshape(n, side * side, heads, 3, channels // heads)
    q, k, v = (each[:, :, :, role].transpose(1, 2) for role in range(3))
    place = torch.arange(side * side)
    down = (place[:, None] // side - place[None, :] // side).abs()
    across = (place[:, None] % side - place[None, :] % side).abs()
    bias = w[f"{name}.attention_biases"][:, down * side + across]
    scores = q @ k.transpose(-1, -2) / math.sqrt(channels // heads) + bias
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return _applied(w, f"{name}.proj", mixed).transpose(1, 2).reshape(x.shape)


def _applied(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _normed(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
