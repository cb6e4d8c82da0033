"""MobileSAM as transformers' prompt encoder and mask decoder behind timm's TinyViT.

Differences from timm's classifier: the last stage keeps the resolution, SAM's neck follows, and
the classifier's head goes.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitdeploy.models.checkpoint import StateDict
from vitdeploy.models.segment_anything.publisher import without_encoder

_CONV_NORM = (r"^(.*)\.c\.", r"\1.conv.")
_RULES = (
    (r"^patch_embed\.seq\.0\.", "trunk.patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "trunk.patch_embed.conv2."),
    (r"^layers\.(\d+)\.blocks\.", r"trunk.stages.\1.blocks."),
    (r"^neck\.0\.", "neck.conv1."),
    (r"^neck\.1\.", "neck.layer_norm1."),
    (r"^neck\.2\.", "neck.conv2."),
    (r"^neck\.3\.", "neck.layer_norm2."),
)
_UNUSED = ("norm_head.", "head.")
_ENCODER = "image_encoder."


class MobileSam(nn.Module):  # type: ignore[misc]
    """Returns `image_embeddings`; holds the prompt encoder and mask decoder beside."""

    def __init__(self, trunk: nn.Module, sam: Any) -> None:
        """Take timm's TinyViT `trunk`, and all but the vision layers of `sam` (SamModel)."""
        super().__init__()
        last = trunk.stages[-1].downsample.conv2.conv
        last.stride = (1, 1)
        trunk.head = nn.Identity()
        self.trunk = trunk
        self.neck = sam.vision_encoder.neck
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder
        self.config = sam.config

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return (N, C, H / 16, W / 16) float32; `pixel_values` (N, 3, H, W) normalised."""
        features = self.trunk.stages(self.trunk.patch_embed(pixel_values))
        return self.neck(features.permute(0, 2, 3, 1))


class TinyVitImageEncoder(nn.Module):  # type: ignore[misc]
    """Returns `image_embeddings` of MobileSAM, its attention in products with constant biases."""

    def __init__(self, model: MobileSam) -> None:
        """Take the image encoder of `model`; its attention layers are replaced in place."""
        super().__init__()
        self.trunk = model.trunk
        self.neck = model.neck
        for stage in self.trunk.stages[1:]:
            for block in stage.blocks:
                block.attn = BiasedAttention(block.attn)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return (N, C, H / 16, W / 16) float32; `pixel_values` (N, 3, H, W) normalised."""
        features = self.trunk.stages(self.trunk.patch_embed(pixel_values))
        return self.neck(features.permute(0, 2, 3, 1))


class BiasedAttention(nn.Module):  # type: ignore[misc]
    """TinyViT's attention within a window; timm's keeps its bias in a cache that does not export.

    It is no site for pruning: q, k and v of a head lie side by side, head after head.
    """

    def __init__(self, attention: Any) -> None:
        """Take the layers of timm's `Attention`."""
        super().__init__()
        self.norm = attention.norm
        self.qkv = attention.qkv
        self.proj = attention.proj
        self.heads = int(attention.num_heads)
        self.scale = float(attention.scale)
        with torch.no_grad():
            bias = attention.attention_biases[:, attention.attention_bias_idxs].unsqueeze(0)
        self.register_buffer("bias", bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (N, T, C) like `tokens`."""
        count, width = tokens.shape[1], tokens.shape[2]
        packed = self.qkv(self.norm(tokens)).reshape(-1, count, self.heads, 3, width // self.heads)
        query, key, value = packed.permute(3, 0, 2, 1, 4).unbind(0)
        scores = (query * self.scale) @ key.transpose(-2, -1) + self.bias
        context = scores.softmax(dim=-1) @ value
        return self.proj(context.transpose(1, 2).reshape(-1, count, width))


def mobile_sam_from_publisher(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Return `mobile_sam.pt` under the names of `MobileSam`; the classifier's head is left out."""
    result = without_encoder(weights)
    for name, value in weights.items():
        inner = name.removeprefix(_ENCODER)
        if inner != name and not inner.startswith(_UNUSED):
            result[_encoder_name(inner)] = value
    return result


def _encoder_name(name: str) -> str:
    name = re.sub(*_CONV_NORM, name)
    # there a stage ends with the halving, in timm the next one begins with it
    merging = re.match(r"^layers\.(\d+)\.downsample\.(.+)$", name)
    if merging is not None:
        return f"trunk.stages.{int(merging[1]) + 1}.downsample.{merging[2]}"
    for pattern, form in _RULES:
        name, count = re.subn(pattern, form, name)
        if count:
            break
    return name
