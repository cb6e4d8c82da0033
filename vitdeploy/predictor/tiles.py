"""Tiles of a picture through an engine; how a picture is cut is `data.tiling`'s."""

from collections.abc import Callable

import numpy as np

from vitdeploy.bundle import TensorInfo
from vitdeploy.data import Tiling
from vitdeploy.manifest import Manifest
from vitdeploy.predictor.artifacts import run_pictures
from vitdeploy.runner import Feeds, Outputs


def tiling_from_manifest(manifest: Manifest) -> Tiling | None:
    """Return how a bundle's pictures are cut, None where they are not."""
    entry = manifest.tiling
    if entry is None:
        return None
    return Tiling(entry.tile_size, entry.max_tiles, entry.thumbnail)


def run_in_chunks(
    engine: Callable[[Feeds], Outputs], pixels: TensorInfo, tiles: np.ndarray, most: int
) -> Outputs:
    """Return the outputs for all tiles (N, 3, H, W), `most` of them at a time."""
    chunks = [
        run_pictures(engine, pixels, tiles[start : start + most])
        for start in range(0, len(tiles), most)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
