"""Cutting a map of tokens into square windows and putting it together again.

Batch sizes stay symbolic: each reshape has one -1, so that the exported graph holds no arithmetic
on shapes.
"""

import torch
from torch.nn import functional

Grid = tuple[int, int]
"""(rows, columns) of tokens."""


def windows_from_map(tokens: torch.Tensor, window: int) -> torch.Tensor:
    """Return (N * windows, window * window, C) of a map (N, H, W, C), zero-padded to whole windows.

    Padding goes to the right and the bottom, as Segment Anything was trained with.
    """
    _, height, width, channels = tokens.shape
    padded = functional.pad(tokens, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = padded.shape[1] // window, padded.shape[2] // window
    cut = padded.reshape(-1, rows, window, columns, window, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def map_from_windows(windows: torch.Tensor, window: int, grid: Grid) -> torch.Tensor:
    """Return the map (N, H, W, C) that `windows_from_map` cut, its padding removed."""
    height, width = grid
    rows, columns = -(-height // window), -(-width // window)
    channels = windows.shape[-1]
    placed = windows.reshape(-1, rows, columns, window, window, channels)
    joined = placed.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * window, columns * window, channels)
    return joined[:, :height, :width]
