"""Pictures cut into tiles, as vision-language models read what is larger than their encoder.

A picture is resized to a grid of whole tiles whose aspect ratio is nearest its own, cut, and where
there is more than one tile the whole picture follows as a thumbnail: the scheme of InternVL 1.5
(arXiv 2404.16821, section 3.2). What a tile becomes for the model is `preprocess`'s.
"""

import dataclasses
from dataclasses import dataclass

from PIL import Image

from vitdeploy.data.preprocess import Preprocess, resize, to_rgb


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut."""

    tile_size: int
    """Pixels of a tile's side, which is the model's input."""
    max_tiles: int
    """Most tiles of one picture, the thumbnail not counted."""
    thumbnail: bool = True
    """Whether the whole picture follows, where there is more than one tile."""


@dataclass(frozen=True)
class Tiles:
    """One picture's tiles, row by row, and its thumbnail last."""

    images: tuple[Image.Image, ...]
    """RGB, all of the tiling's size."""
    rows: int
    columns: int


def grid_for(size: tuple[int, int], tiling: Tiling) -> tuple[int, int]:
    """Return (rows, columns) of the tiles for a picture of `size` (height, width) in pixels.

    Of two grids of the same shape the larger is taken where the picture fills half of it.
    """
    height, width = size
    shapes = [
        (rows, columns)
        for rows in range(1, tiling.max_tiles + 1)
        for columns in range(1, tiling.max_tiles // rows + 1)
    ]
    best, nearest = (1, 1), float("inf")
    for rows, columns in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[1])):
        distance = abs(width / height - columns / rows)
        fills_half = height * width > 0.5 * tiling.tile_size**2 * rows * columns
        if distance < nearest or (distance == nearest and fills_half):
            best, nearest = (rows, columns), distance
    return best


def cut(image: Image.Image, tiling: Tiling, preprocess: Preprocess) -> Tiles:
    """Return the tiles of a picture, and its thumbnail.

    Args:
        image: of any size.
        tiling: how it is cut.
        preprocess: whose interpolation resizes it.

    Raises:
        DataError: the picture has more than 8 bits per channel.
    """
    picture = to_rgb(image)
    side = tiling.tile_size
    rows, columns = grid_for((picture.height, picture.width), tiling)
    whole = squashed(preprocess, (rows * side, columns * side))
    canvas = resize(picture, whole)
    tiles = [
        canvas.crop((left, top, left + side, top + side))
        for top in range(0, rows * side, side)
        for left in range(0, columns * side, side)
    ]
    if tiling.thumbnail and len(tiles) > 1:
        tiles.append(resize(picture, squashed(preprocess, (side, side))))
    return Tiles(tuple(tiles), rows, columns)


def squashed(preprocess: Preprocess, size: tuple[int, int]) -> Preprocess:
    """Return `preprocess` for pictures that become (height, width) pixels without a crop."""
    return dataclasses.replace(preprocess, size=size, crop_pct=1.0, crop_mode="squash")
