"""FastViT (arXiv 2303.14189), modelled by timm and re-parameterised before export."""

from collections.abc import Mapping
from typing import Any

from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions

ALIASES: Mapping[str, Alias] = {
    f"fastvit-{size}": Alias(f"timm:fastvit_{size}", 256)
    for size in ("t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36")
}
_STRIDE = 32


def owns(architecture: str) -> bool:
    """Return True for timm's names of this family."""
    return architecture.startswith("fastvit_")


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model; see `load_timm` for what it raises."""
    from timm.utils import reparameterize_model

    from vitdeploy.models.timm_models import TimmAdapter, load_timm

    adapter = TimmAdapter(
        _size_arguments,
        finish=reparameterize_model,
        size_note="the model has no position embeddings, its weights are unchanged",
    )
    return load_timm(reference, options, adapter)


def _size_arguments(model: Any, image_size: int) -> dict[str, Any]:
    """Return no arguments: any multiple of the total stride will do.

    Raises:
        ModelError: the size is no multiple of 32 pixels.
    """
    from vitdeploy.models.timm_models import check_multiple

    check_multiple(image_size, _STRIDE)
    return {}
