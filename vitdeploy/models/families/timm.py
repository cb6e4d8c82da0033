"""Any other model of timm, as far as its general interface goes: `timm:NAME`, or a folder."""

from collections.abc import Mapping
from typing import Any

from vitdeploy.models.reference import Alias, Reference
from vitdeploy.models.spec import LoadedModel, LoadOptions

ALIASES: Mapping[str, Alias] = {}


def owns(architecture: str) -> bool:
    """Return True for every name; this family is asked last."""
    return bool(architecture)


def load(reference: Reference, options: LoadOptions) -> LoadedModel:
    """Return the model; see `load_timm` for what it raises."""
    from vitdeploy.models.timm_models import TimmAdapter, load_timm

    return load_timm(reference, options, TimmAdapter(_size_arguments, finish=_reparameterised))


def _reparameterised(model: Any) -> Any:
    from timm.utils import reparameterize_model

    return reparameterize_model(model)


def _size_arguments(model: Any, image_size: int) -> dict[str, Any]:
    """Return timm's arguments for `image_size` pixels; whether it runs there shows the trace.

    Raises:
        ModelError: the size is no multiple of the patch size.
    """
    from vitdeploy.models.timm_models import check_multiple

    patches = getattr(model, "patch_embed", None)
    patch = getattr(patches, "patch_size", None)
    if patch is not None:
        check_multiple(image_size, max(patch) if isinstance(patch, tuple) else int(patch))
    takes_size = (
        model.pretrained_cfg.get("fixed_input_size", False)
        or hasattr(model, "pos_embed")
        or getattr(patches, "img_size", None) is not None
    )
    return {"img_size": image_size} if takes_size else {}
