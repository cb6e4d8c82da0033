"""DINOv2 (arXiv 2304.07193), with and without registers, modelled by timm. No classifier."""

from collections.abc import Mapping

from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions

ALIASES: Mapping[str, Alias] = {
    "dinov2-small": Alias("timm:vit_small_patch14_dinov2", 518),
    "dinov2-small-reg": Alias("timm:vit_small_patch14_reg4_dinov2", 518),
    "dinov2-base": Alias("timm:vit_base_patch14_dinov2", 518),
    "dinov2-base-reg": Alias("timm:vit_base_patch14_reg4_dinov2", 518),
    "dinov2-large": Alias("timm:vit_large_patch14_dinov2", 518),
    "dinov2-large-reg": Alias("timm:vit_large_patch14_reg4_dinov2", 518),
    "dinov2-giant": Alias("timm:vit_giant_patch14_dinov2", 518),
    "dinov2-giant-reg": Alias("timm:vit_giant_patch14_reg4_dinov2", 518),
}


def owns(architecture: str) -> bool:
    """Return True for timm's names of this family."""
    return "dinov2" in architecture


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model; see `load_timm` for what it raises."""
    from vitdeploy.models.patches import patch_arguments
    from vitdeploy.models.timm_models import TimmAdapter, load_timm

    return load_timm(reference, options, TimmAdapter(patch_arguments))
