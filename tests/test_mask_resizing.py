"""Masks at the picture's size, against torch's own resizing."""

import numpy as np
import pytest
import torch

from vitdeploy.data import Preprocess
from vitdeploy.mask_resizing import masks_at_picture, resized


def preprocess(crop_mode: str, size: int = 32) -> Preprocess:
    return Preprocess((size, size), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, crop_mode)


@pytest.mark.parametrize("size", [(8, 8), (5, 3), (20, 33), (1, 1)])
def test_resizing_is_torchs(size):
    masks = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(masks), size=size, mode="bilinear", align_corners=False
    )
    # torch computes places in float32, to 1e-6 of a pixel
    np.testing.assert_allclose(resized(masks, size), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("picture", [(40, 60), (61, 33), (32, 32)])
def test_padding_is_cut_away(picture):
    """Where a mask is drawn on the longest side's frame, it comes back where it lies."""
    masks = np.random.default_rng(0).standard_normal((1, 2, 8, 8)).astype(np.float32)
    frame = torch.nn.functional.interpolate(
        torch.from_numpy(masks), size=(32, 32), mode="bilinear", align_corners=False
    )
    share = 32 / max(picture)
    height, width = (int(side * share + 0.5) for side in picture)
    expected = torch.nn.functional.interpolate(
        frame[..., :height, :width], size=picture, mode="bilinear", align_corners=False
    )
    found = masks_at_picture(masks, picture, preprocess("corner"))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_stretched_picture_has_no_padding():
    masks = np.random.default_rng(0).standard_normal((1, 2, 8, 8)).astype(np.float32)
    found = masks_at_picture(masks, (12, 20), preprocess("squash"))
    np.testing.assert_array_equal(found, resized(masks, (12, 20)))
