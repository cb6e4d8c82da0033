"""What can be removed of a model, and what was chosen to stay."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from vitdeploy.errors import ModelError
from vitdeploy.models.mlp_sites import find_mlp_sites
from vitdeploy.models.spec import AttentionSite, LoadedModel, MlpSite
from vitdeploy.models.surgery import block_of, keep_heads_, unprunable_heads
from vitdeploy.models.trace import run_shapes

WIDEST_STEP = 64
_LEAST_STEPS = 8
_COUNTED = "something outside the layer's projections counts them"


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
    counted = {
        kind: _COUNTED
        for kind, site in _one_of_each_kind(module, loaded.attention)
        if reasons[site.path] is None and not _runs_without_a_head(loaded, site)
    }
    for site in loaded.attention:
        reasons[site.path] = reasons[site.path] or counted.get(attention_kind(module, site))
    attention = tuple(site for site in loaded.attention if reasons[site.path] is None)
    refused = sorted({reason for reason in reasons.values() if reason is not None})
    notes = tuple(
        f"{sum(r == reason for r in reasons.values())} attention layers keep all heads: {reason}"
        for reason in refused
    )
    found = (block_of(site.path) for site in loaded.attention)
    blocks = tuple(dict.fromkeys(path for path in found if path is not None))
    return Sites(attention, find_mlp_sites(module), blocks, notes)


def _one_of_each_kind(
    module: nn.Module, sites: Iterable[AttentionSite]
) -> Iterable[tuple[str, AttentionSite]]:
    """Return a layer of every structure, by its name; those of one head have none to lose."""
    return {attention_kind(module, site): site for site in sites if site.num_heads > 1}.items()


def _runs_without_a_head(loaded: LoadedModel, site: AttentionSite) -> bool:
    """Return whether the model runs on shapes (or for real) once a layer has lost a head."""
    smaller = copy.deepcopy(loaded.parts[0].module)
    keep_heads_(smaller, site, range(site.num_heads - 1))
    try:
        run_shapes(smaller, loaded.spec.preprocess.size[0], lambda model, images: model(images))
    except ModelError:
        return False
    return True


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
