"""Cutting pictures into tiles, against transformers' own."""

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import Preprocess, Tiling
from vitdeploy.data.tiling import cut, grid_for

PREPROCESS = Preprocess((16, 16), interpolation="bicubic", crop_pct=0.8)


def picture(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("most", [2, 6, 12, 40])
def test_grids_are_those_of_transformers(most):
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    sizes = np.random.default_rng(1).integers(4, 1500, (200, 2)).tolist()
    sizes += [(448, 448), (896, 896), (300, 300), (100, 1000), (1000, 100), (448, 896)]
    for height, width in sizes:
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
        assert grid_for((height, width), Tiling(448, most)) == (rows, columns), (height, width)


def test_tiles_are_the_resized_picture_row_by_row_and_a_thumbnail():
    image = picture(30, 50)
    tiles = cut(image, Tiling(16, 6), PREPROCESS)
    assert (tiles.rows, tiles.columns) == (2, 3)
    assert len(tiles.images) == 7
    whole = np.zeros((32, 48, 3), np.uint8)
    for index, tile in enumerate(tiles.images[:6]):
        row, column = divmod(index, 3)
        whole[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = np.asarray(tile)
    expected = image.resize((48, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(whole, np.asarray(expected))
    thumbnail = image.resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(tiles.images[-1]), np.asarray(thumbnail))


def test_one_tile_has_no_thumbnail():
    assert len(cut(picture(12, 12), Tiling(16, 6), PREPROCESS).images) == 1
    bare = cut(picture(30, 50), Tiling(16, 6, thumbnail=False), PREPROCESS)
    assert len(bare.images) == 6
    assert all(
        tile.mode == "RGB" for tile in cut(Image.new("L", (9, 30)), Tiling(8, 3), PREPROCESS).images
    )
