"""Swin (arXiv 2103.14030) and SwinV2 (arXiv 2111.09883), modelled by timm."""

from collections.abc import Mapping
from typing import Any

from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions

ALIASES: Mapping[str, Alias] = {
    "swin-tiny": Alias("timm:swin_tiny_patch4_window7_224", 224),
    "swin-small": Alias("timm:swin_small_patch4_window7_224", 224),
    "swin-base": Alias("timm:swin_base_patch4_window7_224", 224),
    "swin-large": Alias("timm:swin_large_patch4_window7_224", 224),
    "swinv2-tiny": Alias("timm:swinv2_tiny_window8_256", 256),
    "swinv2-small": Alias("timm:swinv2_small_window8_256", 256),
    "swinv2-base": Alias("timm:swinv2_base_window8_256", 256),
    "swinv2-large": Alias("timm:swinv2_large_window12to16_192to256", 256),
}


def owns(architecture: str) -> bool:
    """Return True for timm's names of this family; `swinv2_cr` is another implementation."""
    return architecture.startswith(("swin_", "swinv2_")) and "swinv2_cr" not in architecture


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model; see `load_timm` for what it raises."""
    from vitdeploy.models.timm_models import TimmAdapter, load_timm

    note = "windows keep their size where they fit, else grow with the image (bias tables bicubic)"
    return load_timm(reference, options, TimmAdapter(_size_arguments, size_note=note))


def _size_arguments(model: Any, image_size: int) -> dict[str, Any]:
    """Return timm's arguments for `image_size` pixels: trained windows where they tile each stage.

    Elsewhere windows scale with the image, as timm's `set_input_size` does: padding every layer
    to whole windows would let padding take part in attention.

    Raises:
        ModelError: the stages cannot halve the grid of patches to the end.
    """
    from vitdeploy.models.timm_models import check_multiple

    stages = len(model.layers)
    patch = int(model.patch_embed.patch_size[0])
    check_multiple(image_size, patch * 2 ** (stages - 1))
    native_grid = int(model.patch_embed.grid_size[0])
    window = int(model.layers[0].blocks[0].window_size[0])
    grid = image_size // patch
    sides = [grid // 2**stage for stage in range(stages)]
    if any(side > window and side % window for side in sides):
        window = max(1, window * grid // native_grid)
    return {"img_size": image_size, "window_size": window}
