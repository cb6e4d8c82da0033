"""SAM 2's image encoder as it is exported: Hiera, its pyramid, and the decoder's finer features.

Takes the layers of a transformers `Sam2Model` as they are. Positions are resampled once, here: a
cubic Resize in a graph is not what torch computes.
"""

from typing import Any

import torch
from torch import nn

STEP = 32
"""Pixels: the size of a picture is a multiple of this."""


class Sam2ImageEncoder(nn.Module):  # type: ignore[misc]
    """Returns `image_embeddings`, `high_res_feats_0` and `high_res_feats_1`, for single images."""

    def __init__(self, model: Any, image_size: int) -> None:
        """Take the layers of `model` (Sam2Model) for squares of `image_size` pixels."""
        super().__init__()
        vision = model.vision_encoder
        backbone = vision.backbone
        self.levels = int(vision.num_feature_levels)
        self.patch_embed = backbone.patch_embed
        side = image_size // int(backbone.config.patch_stride[0])
        with torch.no_grad():
            positions = backbone._get_pos_embed((side, side)).contiguous()
        self.positions = nn.Parameter(positions, requires_grad=False)
        self.blocks = backbone.blocks
        self.stage_ends = tuple(backbone.stage_ends)
        self.neck = vision.neck
        self.fine = nn.ModuleList([model.mask_decoder.conv_s0, model.mask_decoder.conv_s1])
        self.no_memory_embedding = model.no_memory_embedding

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return (N, C, h, w), (N, C / 8, 4 h, 4 w) and (N, C / 4, 2 h, 2 w), float32.

        Args:
            pixel_values: (N, 3, 16 h, 16 w) float32, normalised.
        """
        tokens = self.patch_embed(pixel_values) + self.positions
        stages = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.stage_ends:
                stages.append(tokens)
        pyramid, _ = self.neck(tuple(stages))
        finest, middle, coarse = pyramid[-self.levels :][::-1]
        # no frame came before: what video memory would add is one constant
        coarse = coarse + self.no_memory_embedding.reshape(1, -1, 1, 1)
        return coarse, self.fine[0](finest), self.fine[1](middle)
