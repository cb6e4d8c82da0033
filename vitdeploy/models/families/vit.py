"""ViT (arXiv 2010.11929), modelled by timm."""

from collections.abc import Mapping

from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions

ALIASES: Mapping[str, Alias] = {
    "vit-tiny": Alias("timm:vit_tiny_patch16_224", 224),
    "vit-small": Alias("timm:vit_small_patch16_224", 224),
    "vit-base": Alias("timm:vit_base_patch16_224", 224),
    "vit-large": Alias("timm:vit_large_patch16_224", 224),
    # timm's vit_huge_patch14_224 has no classifier; this is the huge model that has one
    "vit-huge": Alias("timm:vit_huge_patch14_clip_224", 224),
}

# Named vit_ in timm, but other classes with other arguments.
_OTHERS = ("relpos", "dinov2", "dinov3", "rpn", "_pe_", "hybrid", "_r26_", "_r50_", "sapiens2")


def owns(architecture: str) -> bool:
    """Return True for timm's names of this family."""
    return architecture.startswith("vit_") and not any(part in architecture for part in _OTHERS)


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model; see `load_timm` for what it raises."""
    from vitdeploy.models.patches import patch_arguments
    from vitdeploy.models.timm_models import TimmAdapter, load_timm

    return load_timm(reference, options, TimmAdapter(patch_arguments))
