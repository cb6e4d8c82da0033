"""What can be removed of a model, and what was chosen to stay."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from vitdeploy.models.mlp_sites import find_mlp_sites
from vitdeploy.models.spec import AttentionSite, LoadedModel, MlpSite
from vitdeploy.models.surgery import block_of, unprunable_heads

WIDEST_STEP = 64
_LEAST_STEPS = 8


@dataclass(frozen=True)
class Sites:
    """The layers whose heads and channels can be removed, and the blocks that hold them."""

    attention: tuple[AttentionSite, ...]
    mlp: tuple[MlpSite, ...]
    blocks: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What cannot be removed, and why."""


@dataclass(frozen=True)
class Kept:
    """What stays. Layers and MLPs that are not named stay whole; indices ascend."""

    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By path of the attention layer."""
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By path of the MLP."""
    removed_blocks: tuple[str, ...] = ()


def find_sites(loaded: LoadedModel) -> Sites:
    """Return what can be removed of a model's first part."""
    module: nn.Module = loaded.parts[0].module
    reasons = {site.path: unprunable_heads(module, site) for site in loaded.attention}
    attention = tuple(site for site in loaded.attention if reasons[site.path] is None)
    refused = sorted({reason for reason in reasons.values() if reason is not None})
    notes = tuple(
        f"{sum(r == reason for r in reasons.values())} attention layers keep all heads: {reason}"
        for reason in refused
    )
    found = (block_of(site.path) for site in loaded.attention)
    blocks = tuple(dict.fromkeys(path for path in found if path is not None))
    return Sites(attention, find_mlp_sites(module), blocks, notes)


def without_blocks(sites: Sites, removed: tuple[str, ...]) -> Sites:
    """Return the sites that are not inside a removed block."""
    inside = tuple(f"{path}." for path in removed)

    def stays(path: str) -> bool:
        return not f"{path}.".startswith(inside) if inside else True

    return Sites(
        tuple(site for site in sites.attention if stays(site.path)),
        tuple(site for site in sites.mlp if stays(site.path)),
        tuple(path for path in sites.blocks if stays(path)),
        sites.notes,
    )


def width_step(width: int, asked: int | None) -> int:
    """Return how many channels go at a time: `asked`, else a power of two that suits the width.

    That is 64, which engines run at full speed, or what still divides the width and leaves eight
    steps.
    """
    if asked is not None:
        return min(asked, width)
    step = WIDEST_STEP
    while step > 1 and (width % step or width // step < _LEAST_STEPS):
        step //= 2
    return step


def attention_kind(module: nn.Module, site: AttentionSite) -> str:
    """Return a name that layers of the same structure share, whatever their widths."""
    names = sorted(path.rpartition(".")[2] for path in site.per_head)
    return f"{type(module.get_submodule(site.path)).__name__}/{len(site.qkv)}/{','.join(names)}"


def mlp_kind(module: nn.Module, site: MlpSite) -> str:
    """Return a name that MLPs of the same structure share, whatever their widths."""
    layer = module.get_submodule(site.path)
    kind = type(module.get_submodule(site.output)).__name__
    names = [path.removeprefix(site.path) for path in (*site.inputs, site.output)]
    return f"{type(layer).__name__}/{kind}/{','.join(names)}/{site.is_packed}"
