"""Segment Anything as plain functions of a checkpoint in the publisher's layout, at a tiny size.

The independent reference of these tests: it reads the publisher's names alone, follows the paper
(arXiv 2304.02643) and the decoder's published ONNX interface, and shares no code with the package.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """A tiny SAM."""

    image: int = 128
    width: int = 48
    heads: int = 3
    depth: int = 4
    window: int = 3
    whole: tuple[int, ...] = (1, 3)
    channels: int = 32
    decoder_heads: int = 4
    decoder_mlp: int = 64

    @property
    def side(self) -> int:
        return self.image // 16


def draw_checkpoint(size: Size, seed: int = 0) -> Weights:
    """All tensors random: no zero and no one that could hide a wrong name."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in (*_encoder_shapes(size), *decoder_shapes(size)):
        noise = torch.randn(shape, generator=generator)
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        is_norm_scale = len(shape) == 1 and name.endswith("weight")
        weights[name] = 1 + 0.2 * noise if is_norm_scale else noise * min(0.5, fan_in**-0.5)
    return weights


def _linear(name: str, out: int, into: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _encoder_shapes(size: Size) -> Iterator[tuple[str, Shape]]:
    c, e = size.width, "image_encoder"
    yield f"{e}.pos_embed", (1, size.side, size.side, c)
    yield f"{e}.patch_embed.proj.weight", (c, 3, 16, 16)
    yield f"{e}.patch_embed.proj.bias", (c,)
    for i in range(size.depth):
        b = f"{e}.blocks.{i}"
        length = 2 * (size.side if i in size.whole else size.window) - 1
        yield from _norm(f"{b}.norm1", c)
        yield f"{b}.attn.rel_pos_h", (length, c // size.heads)
        yield f"{b}.attn.rel_pos_w", (length, c // size.heads)
        yield from _linear(f"{b}.attn.qkv", 3 * c, c)
        yield from _linear(f"{b}.attn.proj", c, c)
        yield from _norm(f"{b}.norm2", c)
        yield from _linear(f"{b}.mlp.lin1", 4 * c, c)
        yield from _linear(f"{b}.mlp.lin2", c, 4 * c)
    yield f"{e}.neck.0.weight", (size.channels, c, 1, 1)
    yield from _norm(f"{e}.neck.1", size.channels)
    yield f"{e}.neck.2.weight", (size.channels, size.channels, 3, 3)
    yield from _norm(f"{e}.neck.3", size.channels)


def decoder_shapes(size: Size) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of prompt encoder and mask decoder."""
    c, p, m = size.channels, "prompt_encoder", "mask_decoder"
    yield f"{p}.pe_layer.positional_encoding_gaussian_matrix", (2, c // 2)
    for i in range(4):
        yield f"{p}.point_embeddings.{i}.weight", (1, c)
    yield f"{p}.not_a_point_embed.weight", (1, c)
    yield f"{p}.no_mask_embed.weight", (1, c)
    for index, (out, into, kernel) in {0: (4, 1, 2), 3: (16, 4, 2), 6: (c, 16, 1)}.items():
        yield f"{p}.mask_downscaling.{index}.weight", (out, into, kernel, kernel)
        yield f"{p}.mask_downscaling.{index}.bias", (out,)
    yield from _norm(f"{p}.mask_downscaling.1", 4)
    yield from _norm(f"{p}.mask_downscaling.4", 16)
    yield f"{m}.iou_token.weight", (1, c)
    yield f"{m}.mask_tokens.weight", (4, c)
    attentions = [(f"{m}.transformer.final_attn_token_to_image", c // 2)]
    for i in range(2):
        layer = f"{m}.transformer.layers.{i}"
        attentions += [(f"{layer}.self_attn", c)]
        attentions += [(f"{layer}.cross_attn_{d}", c // 2) for d in _DIRECTIONS]
        for n in range(1, 5):
            yield from _norm(f"{layer}.norm{n}", c)
        yield from _linear(f"{layer}.mlp.lin1", size.decoder_mlp, c)
        yield from _linear(f"{layer}.mlp.lin2", c, size.decoder_mlp)
    for name, inner in attentions:
        for role in "qkv":
            yield from _linear(f"{name}.{role}_proj", inner, c)
        yield from _linear(f"{name}.out_proj", c, inner)
    yield from _norm(f"{m}.transformer.norm_final_attn", c)
    yield f"{m}.output_upscaling.0.weight", (c, c // 4, 2, 2)
    yield f"{m}.output_upscaling.0.bias", (c // 4,)
    yield from _norm(f"{m}.output_upscaling.1", c // 4)
    yield f"{m}.output_upscaling.3.weight", (c // 4, c // 8, 2, 2)
    yield f"{m}.output_upscaling.3.bias", (c // 8,)
    for head, out in [(f"output_hypernetworks_mlps.{i}", c // 8) for i in range(4)] + [
        ("iou_prediction_head", 4)
    ]:
        for i, width in enumerate((c, c, out)):
            yield from _linear(f"{m}.{head}.layers.{i}", width, c)


_DIRECTIONS = ("token_to_image", "image_to_token")


# --- what the checkpoint computes


def _apply(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _normed(w: Weights, name: str, x: Tensor, epsilon: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], epsilon)


def _normed_channels(w: Weights, name: str, x: Tensor) -> Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    scale, shift = (w[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return (x - mean) / (variance + 1e-6).sqrt() * scale + shift


def neck(w: Weights, x: Tensor, prefix: str) -> Tensor:
    """(N, C, h, w) -> (N, channels, h, w)."""
    x = _normed_channels(w, f"{prefix}.1", F.conv2d(x, w[f"{prefix}.0.weight"]))
    return _normed_channels(w, f"{prefix}.3", F.conv2d(x, w[f"{prefix}.2.weight"], padding=1))


def image_encoder(w: Weights, size: Size, pixels: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, channels, H / 16, W / 16)."""
    e = "image_encoder"
    patches = (w[f"{e}.patch_embed.proj.{part}"] for part in ("weight", "bias"))
    x = F.conv2d(pixels, *patches, stride=16).permute(0, 2, 3, 1) + w[f"{e}.pos_embed"]
    for i in range(size.depth):
        b = f"{e}.blocks.{i}"
        y = _normed(w, f"{b}.norm1", x, 1e-6)
        if i in size.whole:
            y = _attention(w, f"{b}.attn", size.heads, y)
        else:
            y = _in_windows(w, f"{b}.attn", size, y)
        x = x + y
        hidden = F.gelu(_apply(w, f"{b}.mlp.lin1", _normed(w, f"{b}.norm2", x, 1e-6)))
        x = x + _apply(w, f"{b}.mlp.lin2", hidden)
    return neck(w, x.permute(0, 3, 1, 2), f"{e}.neck")


def _in_windows(w: Weights, name: str, size: Size, x: Tensor) -> Tensor:
    """Window by window, each cut out on its own; what lies outside the map is zero."""
    n, height, width, channels = x.shape
    out = torch.zeros_like(x)
    for top in range(0, height, size.window):
        for left in range(0, width, size.window):
            cut = x[:, top : top + size.window, left : left + size.window]
            window = torch.zeros(n, size.window, size.window, channels)
            window[:, : cut.shape[1], : cut.shape[2]] = cut
            done = _attention(w, name, size.heads, window)[:, : cut.shape[1], : cut.shape[2]]
            out[:, top : top + size.window, left : left + size.window] = done
    return out


def _attention(w: Weights, name: str, heads: int, x: Tensor) -> Tensor:
    n, height, width, channels = x.shape
    count, dim = height * width, channels // heads
    q, k, v = (
        part.reshape(n, count, heads, dim).transpose(1, 2)
        for part in _apply(w, f"{name}.qkv", x.reshape(n, count, channels)).chunk(3, dim=-1)
    )
    row = torch.arange(count) // width
    column = torch.arange(count) % width
    by_row = w[f"{name}.rel_pos_h"][row[:, None] - row[None, :] + height - 1]
    by_column = w[f"{name}.rel_pos_w"][column[:, None] - column[None, :] + width - 1]
    scores = q @ k.transpose(-1, -2) / math.sqrt(dim)
    scores = scores + torch.einsum("nhqc,qkc->nhqk", q, by_row + by_column)
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, height, width, channels)
    return _apply(w, f"{name}.proj", out)


def mask_decoder(w: Weights, size: Size, feeds: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The published ONNX decoder: masks, iou_predictions, low_res_masks."""
    coords, labels = feeds["point_coords"], feeds["point_labels"]
    sparse = _fourier(w, (coords + 0.5) / size.image)
    for p in range(len(labels)):
        for i, label in enumerate(labels[p].int().tolist()):
            if label == -1:
                sparse[p, i] = w["prompt_encoder.not_a_point_embed.weight"][0]
            else:
                sparse[p, i] += w[f"prompt_encoder.point_embeddings.{label}.weight"][0]
    low, quality = _predicted(w, size, feeds["image_embeddings"] + _dense(w, feeds), sparse)
    return resized_masks(low, size.image, feeds["orig_im_size"]), quality, low


def _fourier(w: Weights, places: Tensor) -> Tensor:
    matrix = w["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    angles = 2 * math.pi * (2 * places - 1) @ matrix
    return torch.cat([angles.sin(), angles.cos()], -1)


def _dense(w: Weights, feeds: dict[str, Tensor]) -> Tensor:
    d = "prompt_encoder.mask_downscaling"
    if not feeds["has_mask_input"].item():
        return w["prompt_encoder.no_mask_embed.weight"].reshape(1, -1, 1, 1)
    x = F.conv2d(feeds["mask_input"], w[f"{d}.0.weight"], w[f"{d}.0.bias"], stride=2)
    x = F.gelu(_normed_channels(w, f"{d}.1", x))
    x = F.conv2d(x, w[f"{d}.3.weight"], w[f"{d}.3.bias"], stride=2)
    x = F.gelu(_normed_channels(w, f"{d}.4", x))
    return F.conv2d(x, w[f"{d}.6.weight"], w[f"{d}.6.bias"])


def _predicted(w: Weights, size: Size, image: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    m, count = "mask_decoder", len(sparse)
    own = torch.cat([w[f"{m}.iou_token.weight"], w[f"{m}.mask_tokens.weight"]])
    start = torch.cat([own.expand(count, -1, -1), sparse], 1)
    centres = (torch.arange(size.side) + 0.5) / size.side
    grid = torch.stack([centres.repeat(size.side), centres.repeat_interleave(size.side)], dim=-1)
    places = _fourier(w, grid)
    tokens, keys = start, image.flatten(2).transpose(1, 2).expand(count, -1, -1)
    for i in range(2):
        t = f"{m}.transformer.layers.{i}"
        asked = tokens if i == 0 else tokens + start
        attended = _crossed(w, f"{t}.self_attn", size, asked, asked, tokens)
        tokens = _normed(w, f"{t}.norm1", attended + (0 if i == 0 else tokens), 1e-5)
        found = _crossed(
            w, f"{t}.cross_attn_token_to_image", size, tokens + start, keys + places, keys
        )
        tokens = _normed(w, f"{t}.norm2", tokens + found, 1e-5)
        hidden = F.relu(_apply(w, f"{t}.mlp.lin1", tokens))
        tokens = _normed(w, f"{t}.norm3", tokens + _apply(w, f"{t}.mlp.lin2", hidden), 1e-5)
        told = _crossed(
            w, f"{t}.cross_attn_image_to_token", size, keys + places, tokens + start, tokens
        )
        keys = _normed(w, f"{t}.norm4", keys + told, 1e-5)
    t = f"{m}.transformer"
    last = f"{t}.final_attn_token_to_image"
    tokens = tokens + _crossed(w, last, size, tokens + start, keys + places, keys)
    tokens = _normed(w, f"{t}.norm_final_attn", tokens, 1e-5)
    fine = keys.transpose(1, 2).reshape(count, size.channels, size.side, size.side)
    u = f"{m}.output_upscaling"
    fine = F.conv_transpose2d(fine, w[f"{u}.0.weight"], w[f"{u}.0.bias"], stride=2)
    fine = F.gelu(_normed_channels(w, f"{u}.1", fine))
    fine = F.gelu(F.conv_transpose2d(fine, w[f"{u}.3.weight"], w[f"{u}.3.bias"], stride=2))
    heads = [
        _small_mlp(w, f"{m}.output_hypernetworks_mlps.{i}", tokens[:, 1 + i]) for i in range(4)
    ]
    masks = torch.einsum("pmc,pchw->pmhw", torch.stack(heads, 1), fine)
    return masks, _small_mlp(w, f"{m}.iou_prediction_head", tokens[:, 0])


def _crossed(w: Weights, name: str, size: Size, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    query, key, value = (
        _apply(w, f"{name}.{role}_proj", x).unflatten(-1, (size.decoder_heads, -1)).transpose(1, 2)
        for role, x in (("q", q), ("k", k), ("v", v))
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return _apply(w, f"{name}.out_proj", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def _small_mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    x = F.relu(_apply(w, f"{name}.layers.0", x))
    return _apply(w, f"{name}.layers.2", F.relu(_apply(w, f"{name}.layers.1", x)))


def resized_masks(low: Tensor, image: int, picture: Tensor) -> Tensor:
    """Low-resolution masks at the picture's size: to the square, padding off, to the picture."""
    square = F.interpolate(low, (image, image), mode="bilinear", align_corners=False)
    height, width = (int(v) for v in picture)
    scale = image / max(height, width)
    used = square[..., : int(height * scale + 0.5), : int(width * scale + 0.5)]
    return F.interpolate(used, (height, width), mode="bilinear", align_corners=False)
