"""DeiT (arXiv 2012.12877), with and without the distillation token, modelled by timm.

Out of training the two heads of a distilled model are averaged: one `logits`.
"""

from collections.abc import Mapping

from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions

ALIASES: Mapping[str, Alias] = {
    "deit-tiny": Alias("timm:deit_tiny_patch16_224", 224),
    "deit-small": Alias("timm:deit_small_patch16_224", 224),
    "deit-base": Alias("timm:deit_base_patch16_224", 224),
    "deit-tiny-distilled": Alias("timm:deit_tiny_distilled_patch16_224", 224),
    "deit-small-distilled": Alias("timm:deit_small_distilled_patch16_224", 224),
    "deit-base-distilled": Alias("timm:deit_base_distilled_patch16_224", 224),
}


def owns(architecture: str) -> bool:
    """Return True for timm's names of this family."""
    return architecture.startswith(("deit_", "deit3_"))


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model; see `load_timm` for what it raises."""
    from vitdeploy.models.patches import patch_arguments
    from vitdeploy.models.timm_models import TimmAdapter, load_timm

    return load_timm(reference, options, TimmAdapter(patch_arguments))
