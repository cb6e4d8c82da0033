"""DINOv3 (arXiv 2508.10104), ViT encoders with rotary positions, modelled by timm."""

from collections.abc import Mapping

from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions

ALIASES: Mapping[str, Alias] = {
    "dinov3-small": Alias("timm:vit_small_patch16_dinov3", 256),
    "dinov3-base": Alias("timm:vit_base_patch16_dinov3", 256),
    "dinov3-large": Alias("timm:vit_large_patch16_dinov3", 256),
}


def owns(architecture: str) -> bool:
    """Return True for timm's names of this family."""
    return "dinov3" in architecture


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model; see `load_timm` for what it raises."""
    from vitdeploy.models.patches import patch_arguments
    from vitdeploy.models.timm_models import TimmAdapter, load_timm

    return load_timm(reference, options, TimmAdapter(patch_arguments))
