"""Image sizes of models that cut the image into patches once (ViT and its descendants)."""

from typing import Any

from vitdeploy.models.timm_models import check_multiple


def patch_arguments(model: Any, image_size: int) -> dict[str, Any]:
    """Return timm's arguments for `image_size` pixels; positions are then fixed at that size.

    Raises:
        ModelError: the size is no multiple of the patch size.
    """
    height, width = model.patch_embed.patch_size
    check_multiple(image_size, max(int(height), int(width)))
    return {"img_size": image_size}
