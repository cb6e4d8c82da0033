"""`vit-digits`: the small trained ViT that ships with the package."""

from collections.abc import Mapping

from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions

ALIASES: Mapping[str, Alias] = {"vit-digits": Alias("packaged:vit_digits", 32)}


def owns(architecture: str) -> bool:
    """Return False: it is a ViT, found by its alias alone."""
    return False


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model; see `load_timm` for what it raises."""
    from vitdeploy.models.patches import patch_arguments
    from vitdeploy.models.timm_models import TimmAdapter, load_timm

    return load_timm(reference, options, TimmAdapter(patch_arguments))
