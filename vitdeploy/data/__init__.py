"""Images: how they are prepared, found, loaded, sampled and identified.

What is measured on them lives in `metrics`; nothing here imports torch.
"""

from vitdeploy.data.folder import scan_images
from vitdeploy.data.image_set import (
    Batch,
    ImageLoader,
    ImageSet,
    Unreadable,
    load_batches,
    open_image,
    synthetic_set,
)
from vitdeploy.data.packaged import packaged_path, packaged_set
from vitdeploy.data.pictures import Picture, render
from vitdeploy.data.preprocess import CROP_MODES, INTERPOLATIONS, Preprocess, prepare
from vitdeploy.data.tiling import Tiling

__all__ = [
    "CROP_MODES",
    "INTERPOLATIONS",
    "Batch",
    "ImageLoader",
    "ImageSet",
    "Picture",
    "Preprocess",
    "Tiling",
    "Unreadable",
    "load_batches",
    "open_image",
    "packaged_path",
    "packaged_set",
    "prepare",
    "render",
    "scan_images",
    "synthetic_set",
]
