"""SAM's image encoder as it is exported: plain products, static grids, constant position tables.

Takes the layers of a transformers `SamVisionEncoder` as they are, weights included; nothing is
copied but the small position tables, which another image size resamples.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vitdeploy.models.segment_anything.windows import map_from_windows, windows_from_map


class SamImageEncoder(nn.Module):  # type: ignore[misc]
    """Returns `image_embeddings` of a SAM vision transformer at one image size."""

    def __init__(self, vision: Any, image_size: int) -> None:
        """Take the layers of `vision` (SamVisionEncoder) for squares of `image_size` pixels."""
        super().__init__()
        config = vision.config
        side = image_size // int(config.patch_size)
        self.projection = vision.patch_embed.projection
        positions = resampled_positions(vision.pos_embed.detach(), side)
        self.positions = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(SamBlock(layer, side) for layer in vision.layers)
        self.neck = vision.neck

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return (N, C, H / 16, W / 16) float32; `pixel_values` (N, 3, H, W) normalised."""
        tokens = self.projection(pixel_values).permute(0, 2, 3, 1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.neck(tokens)


class SamBlock(nn.Module):  # type: ignore[misc]
    """One transformer block, over windows or over the whole map."""

    def __init__(self, layer: Any, side: int) -> None:
        """Take the layers of a `SamVisionLayer`, for a map of `side` x `side` tokens."""
        super().__init__()
        self.window = int(layer.window_size)  # 0 in blocks that attend to the whole map
        self.layer_norm1 = layer.layer_norm1
        self.attn = RelativeAttention(layer.attn, self.window or side)
        self.layer_norm2 = layer.layer_norm2
        self.mlp = layer.mlp

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return a map (N, H, W, C) like `tokens`."""
        _, height, width, channels = tokens.shape
        normal = self.layer_norm1(tokens)
        if self.window:
            attended = self.attn(windows_from_map(normal, self.window))
            attended = map_from_windows(attended, self.window, (height, width))
        else:
            attended = self.attn(normal.reshape(-1, height * width, channels))
            attended = attended.reshape(-1, height, width, channels)
        tokens = tokens + attended
        return tokens + self.mlp(self.layer_norm2(tokens))


class RelativeAttention(nn.Module):  # type: ignore[misc]
    """Attention with decomposed relative positions (arXiv 2112.01526, equation 4).

    The scores get q . r_h + q . r_w, where r_h and r_w depend on the distance in rows and columns.
    Both are products with constant tables, and their sum is one additive bias of the scores.
    """

    def __init__(self, attention: Any, side: int) -> None:
        """Take the projections of a `SamVisionAttention`, for squares of `side` x `side` tokens."""
        super().__init__()
        self.qkv = attention.qkv
        self.proj = attention.proj
        self.num_heads = int(attention.num_attention_heads)
        self.scale = float(attention.scale)
        self.side = side
        rows = columns = None
        if attention.use_rel_pos:
            # the tables are of one image size; a folder that is written keeps what they came from
            self.register_buffer("rel_pos_h", attention.rel_pos_h.detach())
            self.register_buffer("rel_pos_w", attention.rel_pos_w.detach())
            rows = relative_table(self.rel_pos_h, side)
            columns = relative_table(self.rel_pos_w, side)
        self.register_buffer("row_table", rows)
        self.register_buffer("column_table", columns)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (N, side * side, C) like `tokens`."""
        count = self.side * self.side
        packed = self.qkv(tokens).reshape(-1, count, 3, self.num_heads, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * self.scale) @ key.transpose(-2, -1)
        if self.row_table is not None:
            scores = scores + self._bias(query)
        context = scores.softmax(dim=-1) @ value
        return self.proj(context.transpose(1, 2).reshape(-1, count, self.num_heads * self.head_dim))

    @property
    def head_dim(self) -> int:
        """Channels of one head; read from the layers, which pruning makes narrower."""
        return int(self.qkv.out_features) // (3 * self.num_heads)

    def _bias(self, query: torch.Tensor) -> torch.Tensor:
        """Return (N, heads, tokens, tokens): the row's and the column's share of each score."""
        side, heads = self.side, self.num_heads
        grid = query.reshape(-1, heads, side, side, self.head_dim)
        rows = grid @ self.row_table
        columns = (grid.transpose(2, 3) @ self.column_table).transpose(2, 3)
        bias = rows.unsqueeze(-1) + columns.unsqueeze(-2)
        return bias.reshape(-1, heads, side * side, side * side)


def relative_table(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Return (side, head_dim, side): entry [a, :, b] belongs to a query at a and a key at b.

    Args:
        positions: (2 * trained side - 1, head_dim), by distance; resampled (linear) to `side`.
        side: tokens along one axis.
    """
    length = 2 * side - 1
    if len(positions) != length:
        channels_first = positions.float().T.unsqueeze(0)
        positions = functional.interpolate(channels_first, size=length, mode="linear")[0].T
    places = torch.arange(side)
    distance = places[:, None] - places[None, :] + side - 1
    return positions[distance].transpose(1, 2).contiguous()


def resampled_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Return absolute positions (1, side, side, C), bicubic with antialias as timm resamples."""
    if positions.shape[1] == side:
        return positions
    channels_first = positions.float().permute(0, 3, 1, 2)
    size = (side, side)
    resized = functional.interpolate(channels_first, size=size, mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous()
