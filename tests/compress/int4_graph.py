"""A small ViT's graph in the opset of INT4, and pictures for it."""

import functools

import numpy as np
import onnx_ir as ir

from tests.small_models import timm_part
from vitdeploy.compress.calibrate import Batches
from vitdeploy.onnx_export import onnx_from_part
from vitdeploy.recipe import INT4_OPSET


@functools.cache
def _exported() -> ir.Model:
    part = timm_part(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2
    )
    return onnx_from_part(part, pictures(3), "dynamic", INT4_OPSET)


def small_vit() -> ir.Model:
    """Two blocks of 64 channels, 17 tokens, shaken weights; its own copy for every call."""
    return _exported().clone()


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """(count, 3, 32, 32) float32: smooth, as pictures are."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 8, 8)).astype(np.float32)
    return np.kron(coarse, np.ones((1, 1, 4, 4), np.float32))


def batches(count: int = 64) -> Batches:
    """A pass over pictures for calibration, eight at a time."""
    data = pictures(count, 1)
    return lambda: ({"pixel_values": data[s : s + 8]} for s in range(0, count, 8))
