"""Which models there are, and loading them: names in, `LoadedModel` out.

`FAMILIES` holds every module of `families/`; to add a family is one module there, one line here
and one test module. timm and transformers do the modelling. The other modules of this package
are no families: spec, reference, hub, checkpoint, random_weights, trace, outputs, patches,
timm_models, transformers_input and description serve them, and onnx_file reads a model that is
an ONNX file. Nothing imports torch before `load`, and `load` of an ONNX file does not either.
"""

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vitdeploy.errors import ModelError, UnsupportedError, UsageError, suggest
from vitdeploy.models.families import (
    deit,
    digits,
    dinov2,
    dinov3,
    fastvit,
    mobile_sam,
    sam,
    sam2,
    swin,
    timm,
    transformers,
    two_tower,
    vit,
)
from vitdeploy.models.reference import Alias, Reference, is_folder_name, read_folder_config
from vitdeploy.models.spec import LoadedModel, LoadOptions
from vitdeploy.recipe import ModelSection, is_onnx_source

if TYPE_CHECKING:
    from vitdeploy.models.description import ModelDescription

__all__ = [
    "FAMILIES",
    "Alias",
    "AliasRow",
    "Family",
    "LoadOptions",
    "LoadedModel",
    "Reference",
    "aliases",
    "describe",
    "load",
    "load_model",
    "owner",
    "resolve",
]


class Family(Protocol):
    """What a family module has."""

    @property
    def ALIASES(self) -> Mapping[str, Alias]:  # noqa: N802
        """Short names, and what they stand for."""
        ...

    def owns(self, architecture: str, /) -> bool:
        """Return True where the timm architecture name belongs to this family."""
        ...

    def load(self, reference: Reference, options: LoadOptions, /) -> LoadedModel:
        """Return the model in FP32, in eval mode."""
        ...


# Asked in this order; the generic ones come last.
FAMILIES: Mapping[str, Family] = types.MappingProxyType(
    {
        "digits": digits,
        "vit": vit,
        "deit": deit,
        "swin": swin,
        "dinov2": dinov2,
        "dinov3": dinov3,
        "fastvit": fastvit,
        "sam": sam,
        "sam2": sam2,
        "mobile_sam": mobile_sam,
        "two_tower": two_tower,
        "transformers": transformers,
        "timm": timm,
    }
)

_MODEL_TYPES: Mapping[str, str] = types.MappingProxyType(
    {
        "sam": "sam",
        "sam2": "sam2",
        "sam2_video": "sam2",
        **dict.fromkeys(two_tower.MODEL_TYPES, "two_tower"),
    }
)
"""Families of models in transformers' layout, by model_type; all others are `transformers`."""
_TRACKING = ("sam2",)
"""Families with parts for video."""
_PROMPTED = ("sam", "sam2", "mobile_sam")
"""Families whose outputs are not to be chosen."""
_UNSUPPORTED = (
    *("edge-sam", "edgesam", "efficient-sam", "efficientsam", "efficientvit-sam", "fast-sam"),
    *("fastsam", "nanosam", "sam-hq", "sam3", "slimsam", "tinysam"),
)
"""Relatives of Segment Anything that no family here builds."""


@dataclass(frozen=True)
class AliasRow:
    """One line of `vitdeploy models`."""

    name: str
    family: str
    source: str
    image_size: int
    """Pixels of the square input."""


def aliases() -> tuple[AliasRow, ...]:
    """Return every alias, by family."""
    return tuple(
        AliasRow(name, key, alias.source, alias.image_size)
        for key, family in FAMILIES.items()
        for name, alias in family.ALIASES.items()
    )


def resolve(name: str) -> Reference:
    """Return what MODEL refers to, without its weights; reads a folder's config.json at most.

    Raises:
        ModelError: no such alias, timm name or folder; suggests the nearest.
        UsageError: the name is empty, or a file.
        UnsupportedError: a variant that no family here builds.
    """
    if not name.strip():
        raise UsageError("MODEL is empty. Give an alias, timm:NAME, hf:REPO or a model folder.")
    for key, family in FAMILIES.items():
        if name in family.ALIASES:
            return _from_alias(name, key, family.ALIASES[name])
    prefix, _, rest = name.partition(":")
    if prefix == "timm":
        return _from_timm(name, rest)
    if prefix == "hf":
        if not rest:
            raise UsageError("hf: needs a repository, for instance hf:facebook/dinov2-small.")
        return Reference(name, "transformers", "hf", rest)
    if name.lower().startswith(_UNSUPPORTED):
        raise UnsupportedError(
            f"'{name}': this variant of Segment Anything cannot be loaded. Supported: "
            f"{', '.join((*sam.ALIASES, *mobile_sam.ALIASES, *sam2.ALIASES))}, and folders of "
            "transformers' SamModel and Sam2Model."
        )
    if Path(name).is_file() or is_folder_name(name):
        return _from_folder(name)
    raise ModelError(_unknown(name))


def load(options: LoadOptions) -> LoadedModel:
    """Return the model that `options` name, in FP32 and eval mode, on the CPU.

    Raises:
        ModelError: the name, its files or the image size do not do; or the weights cannot be
            had (offline), read, or trusted.
        UsageError: options that exclude each other.
        UnsupportedError: not available in this version.
    """
    if is_onnx_source(options.source):
        from vitdeploy.models.onnx_file import load_onnx

        return load_onnx(options)
    reference = resolve(options.source)
    if reference.kind == "hf" and reference.family == "transformers":
        reference = _hub_layout(reference)
    if options.video and reference.family not in _TRACKING:
        raise UsageError(
            f"--video: '{options.source}' is no SAM 2, and has no memory of earlier frames. Leave "
            "--video away."
        )
    if options.outputs is not None and reference.family in _PROMPTED:
        raise UsageError(
            f"--outputs {options.outputs}: '{options.source}' segments what is pointed at, and its "
            "parts always return image_embeddings and masks. Leave --outputs away."
        )
    if options.weightless and reference.family in _PROMPTED:
        raise UnsupportedError(
            f"'{options.source}': figures from shapes alone are not to be had for models that "
            "segment what is pointed at; `vitdeploy inspect` loads one and describes it."
        )
    return FAMILIES[reference.family].load(reference, options)


def load_model(section: ModelSection, seed: int) -> LoadedModel:
    """Return the model that a recipe's `model` section names; see `load`."""
    return load(
        LoadOptions(
            source=section.source,
            checkpoint=None if section.checkpoint is None else Path(section.checkpoint),
            random_weights=section.random_weights,
            image_size=section.image_size,
            outputs=section.outputs,
            seed=seed,
        )
    )


def describe(loaded: LoadedModel) -> "ModelDescription":
    """Return what `vitdeploy inspect` shows of `loaded`; see `description`."""
    from vitdeploy.models import description

    return description.describe(loaded)


def owner(architecture: str) -> str:
    """Return the key of the family that a timm architecture name belongs to."""
    return next(key for key, family in FAMILIES.items() if family.owns(architecture))


def _from_alias(name: str, family: str, alias: Alias) -> Reference:
    kind, _, value = alias.source.partition(":")
    if kind == "packaged":
        folder = Path(__file__).parent / value
        return Reference(name, family, "packaged", str(folder), alias.image_size)
    return Reference(name, family, "hf" if kind == "hf" else "timm", value, alias.image_size)


def _from_timm(name: str, architecture: str) -> Reference:
    """Return the reference of `timm:NAME`; imports timm to know its names."""
    import timm as timm_library

    bare, _, tag = architecture.partition(".")
    if not timm_library.is_model(bare):
        near = suggest(f"timm:{bare}", (f"timm:{known}" for known in timm_library.list_models()))
        raise ModelError(
            f"timm {timm_library.__version__} has no model '{bare}'.{near} "
            "timm.list_models() lists them."
        )
    tagged = timm_library.list_pretrained(f"{bare}.*")
    if tag and architecture not in tagged:
        raise ModelError(
            f"timm {timm_library.__version__} has no weights '{tag}' for '{bare}'."
            f"{suggest(architecture, tagged)} Known: {', '.join(tagged) or 'none'}."
        )
    return Reference(name, owner(bare), "timm", architecture)


def _from_folder(name: str) -> Reference:
    folder = Path(name).expanduser()
    kind, config = read_folder_config(folder)
    if kind == "transformers-folder":
        return Reference(name, _family_of_type(config), kind, str(folder))
    return Reference(name, owner(str(config["architecture"])), kind, str(folder))


def _hub_layout(reference: Reference) -> Reference:
    """Return `reference` with the family of the layout its hub repository has."""
    from huggingface_hub import hf_hub_download

    from vitdeploy.models.hub import hub_access
    from vitdeploy.models.reference import read_json

    with hub_access(reference.source):
        config = read_json(Path(hf_hub_download(reference.value, "config.json")))
    if "architecture" not in config:
        return dataclasses.replace(reference, family=_family_of_type(config))
    return dataclasses.replace(reference, family=owner(str(config["architecture"])))


def _family_of_type(config: Mapping[str, object]) -> str:
    """Return the family of a config.json in transformers' layout."""
    return _MODEL_TYPES.get(str(config.get("model_type")), "transformers")


def _unknown(name: str) -> str:
    import timm as timm_library

    known = [row.name for row in aliases()]
    near = suggest(name, known)
    if not near:
        bare = timm_library.list_models()
        near = suggest(f"timm:{name}", (f"timm:{architecture}" for architecture in bare))
    return (
        f"unknown model '{name}'.{near} Allowed: an alias (`vitdeploy models` lists them), "
        "timm:NAME, hf:REPO, or a model folder."
    )
