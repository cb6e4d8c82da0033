"""Physical pruning of heads, MLP channels and blocks: `prune_model`.

`units` says what can go, `importance` what it is worth, `selection` and `budget` what goes;
`models.surgery` removes it. Here it is put together and proved: the whole model with its gates
closed and the pruned model must give the same outputs.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from vitdeploy.compress.prune.budget import Limit, smallest_shares
from vitdeploy.compress.prune.gates import masked
from vitdeploy.compress.prune.importance import (
    Batch,
    Importance,
    Question,
    find_importance,
)
from vitdeploy.compress.prune.selection import Shares, select
from vitdeploy.compress.prune.units import Kept, Sites, find_sites
from vitdeploy.errors import CompressionError, ModelError
from vitdeploy.models import describe
from vitdeploy.models.outputs import library_model
from vitdeploy.models.pruning_record import PruningRecord, path_in_architecture
from vitdeploy.models.spec import LoadedModel
from vitdeploy.models.surgery import keep_channels_, keep_heads_, remove_blocks_
from vitdeploy.models.trace import trace
from vitdeploy.recipe import PruneSection

PROOF_TOLERANCE = 1e-3
"""Largest |pruned - masked| over the RMS of the output, in FP32. Sums of another order give 1e-6
to 1e-5; a wrong slice or a head in the wrong place gives 0.1 and more."""
_PROOF_IMAGES = 2


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    parameters: int
    gmacs: float | None
    """10^9 multiply-accumulates of one image."""


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, and what was done to it."""

    loaded: LoadedModel
    kept: Kept
    """By the paths of the model that was given."""
    section: PruneSection
    """As asked, with the share that was searched for, so that running it again searches nothing."""
    before: Size
    after: Size
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PruneInputs:
    """What pruning needs beyond the model and its options."""

    batches: Callable[[], Iterable[Batch]] | None
    """Images and labels; read once. None for criteria that need none."""
    seed: int = 0
    latency_ms: Callable[[LoadedModel], float] | None = None
    """Measures a candidate where `to_latency_ms` is asked for: median milliseconds."""
    progress: Callable[[int], None] = lambda done: None
    """Called with the number of images done."""


def prune_model(loaded: LoadedModel, section: PruneSection, inputs: PruneInputs) -> PruneResult:
    """Return `loaded` without its least important heads, channels and blocks; it stays as it is.

    Raises:
        CompressionError: what is asked for cannot be removed, the limit cannot be met, or the
            architecture does not allow it.
    """
    _require_module(loaded)
    module = loaded.parts[0].module
    sites = find_sites(loaded)
    has_classes = loaded.class_output is not None
    question = Question(
        section.criterion, inputs.batches, inputs.seed, has_classes, inputs.progress
    )
    importance = find_importance(module, sites, question)
    shares, kept, reached = _choose(loaded, sites, importance, section, inputs)
    pruned = removed_from(loaded, sites, kept)
    _prove(loaded, sites, kept, pruned)
    resolved = section
    if section.has_limit:
        resolved = section.model_copy(update={"found_share": shares.mlp})
    pruned = _recorded(loaded, pruned, kept, _history(shares, resolved, inputs, kept, sites))
    before, after = size_of(loaded), size_of(pruned)
    notes = (*sites.notes, _summary(sites, kept, before, after), *reached)
    return PruneResult(pruned, kept, resolved, before, after, notes)


def size_of(loaded: LoadedModel) -> Size:
    """Return parameters and work of a model."""
    description = describe(loaded)
    return Size(description.parameters, description.gmacs)


def removed_from(loaded: LoadedModel, sites: Sites, kept: Kept) -> LoadedModel:
    """Return a copy of `loaded` without what `kept` leaves out; its record is not written yet.

    Raises:
        CompressionError: the model does not run without it.
    """
    part = loaded.parts[0]
    module = copy.deepcopy(part.module)
    for site in sites.attention:
        if site.path in kept.heads:
            keep_heads_(module, site, kept.heads[site.path])
    for mlp in sites.mlp:
        if mlp.path in kept.channels:
            keep_channels_(module, mlp, kept.channels[mlp.path])
    remove_blocks_(module, kept.removed_blocks)
    try:
        traced = trace(module, loaded.spec.preprocess.size[0])
    except ModelError as e:
        raise CompressionError(
            f"{type(library_model(module)[0]).__name__} does not run with these heads, channels or "
            "blocks removed: something outside the layers themselves counts them. Try --prune-mlp "
            "alone."
        ) from e
    parts = (dataclasses.replace(part, module=module), *loaded.parts[1:])
    return dataclasses.replace(loaded, parts=parts, attention=traced.attention)


def _require_module(loaded: LoadedModel) -> None:
    if loaded.parts[0].file is not None:
        raise CompressionError(
            f"'{loaded.spec.name}' is an ONNX file, and pruning needs the torch model. Prune the "
            "model it was exported from, then export that."
        )


def _choose(
    loaded: LoadedModel,
    sites: Sites,
    importance: Importance,
    section: PruneSection,
    inputs: PruneInputs,
) -> tuple[Shares, Kept, tuple[str, ...]]:
    """Return the shares, what stays, and for people how a limit was met."""
    module = loaded.parts[0].module
    shares = Shares(
        section.heads, section.mlp, section.blocks, section.ranking, section.width_multiple
    )

    def choose(asked: Shares) -> Kept:
        return select(module, sites, importance, asked, exact=not section.has_limit)

    if section.found_share is not None:
        shares = dataclasses.replace(shares, heads=section.found_share, mlp=section.found_share)
        return shares, choose(shares), ()
    limit = _limit(loaded, sites, section, inputs)
    if limit is None:
        return shares, choose(shares), ()
    found = smallest_shares(shares, limit, choose)
    note = (
        f"{found.whole:.4g} to {found.value:.4g} {limit.name} ({limit.most:.4g} asked for), with "
        f"{100 * found.shares.mlp:.1f} % of heads and MLP channels removed"
    )
    return found.shares, found.kept, (note,)


def _limit(
    loaded: LoadedModel, sites: Sites, section: PruneSection, inputs: PruneInputs
) -> Limit | None:
    """Return what is to be met, where the section asks for a limit and not for shares."""

    def of_candidate(value: Callable[[LoadedModel], float]) -> Callable[[Kept], float]:
        return lambda kept: value(removed_from(loaded, sites, kept))

    if section.to_gmacs is not None:
        return Limit("GMACs", section.to_gmacs, of_candidate(lambda m: size_of(m).gmacs or 0.0))
    if section.to_million_parameters is not None:
        most = section.to_million_parameters
        count = of_candidate(lambda m: size_of(m).parameters / 1e6)
        return Limit("million parameters", most, count)
    if section.to_latency_ms is not None:
        if inputs.latency_ms is None:
            raise CompressionError(
                "a latency to reach needs a target to measure on; use to_gmacs here, or "
                "`vitdeploy prune --to-latency-ms MS --target TARGET`, or a recipe."
            )
        measured = of_candidate(inputs.latency_ms)
        return Limit("ms", section.to_latency_ms, measured, is_noisy=True)
    return None


def _prove(loaded: LoadedModel, sites: Sites, kept: Kept, pruned: LoadedModel) -> None:
    """Return where the masked whole model and the pruned one agree on seeded noise.

    Raises:
        CompressionError: they do not, so heads are used elsewhere than in their layer.
    """
    module: nn.Module = loaded.parts[0].module
    size = loaded.spec.preprocess.size
    images = torch.randn(_PROOF_IMAGES, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with masked(module, sites, kept):
            expected = module(images)
        seen = pruned.parts[0].module(images)
    pairs = zip(_tensors(expected), _tensors(seen), strict=True)
    for wanted, found in pairs:
        difference = float((wanted - found).abs().max())
        relative = difference / max(float(wanted.square().mean().sqrt()), 1e-12)
        if not relative <= PROOF_TOLERANCE:
            raise CompressionError(
                f"the pruned '{loaded.spec.name}' does not compute what the model computes with "
                f"those heads and channels masked: {relative:.3g} of the output's RMS, allowed "
                f"{PROOF_TOLERANCE:g}. This architecture uses them in a way vitdeploy does not "
                "know; nothing was written. Please report it."
            )


def _tensors(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _recorded(
    loaded: LoadedModel, pruned: LoadedModel, kept: Kept, history: dict[str, object]
) -> LoadedModel:
    """Return `pruned` with the record of all that its architecture has lost, also before."""
    if loaded.rebuild is None:
        return pruned
    before = loaded.rebuild.pruning
    _, prefix = library_model(loaded.parts[0].module)

    def whole(path: str) -> str:
        return path_in_architecture(path.removeprefix(prefix), before.blocks)

    heads = dict(before.heads)
    for path, indices in kept.heads.items():
        earlier = heads.get(whole(path))
        heads[whole(path)] = tuple(earlier[i] for i in indices) if earlier else indices
    mlp = {**before.mlp, **{whole(path): len(ids) for path, ids in kept.channels.items()}}
    blocks = (*before.blocks, *(whole(path) for path in kept.removed_blocks))
    record = PruningRecord(heads, mlp, blocks, before.reparameterised, (*before.history, history))
    return dataclasses.replace(pruned, rebuild=dataclasses.replace(loaded.rebuild, pruning=record))


def _history(
    shares: Shares, section: PruneSection, inputs: PruneInputs, kept: Kept, sites: Sites
) -> dict[str, object]:
    heads, channels = _removed(sites, kept)
    return {
        "criterion": section.criterion,
        "ranking": section.ranking,
        "share_of_heads": round(shares.heads, 6),
        "share_of_mlp": round(shares.mlp, 6),
        "share_of_blocks": round(shares.blocks, 6),
        "heads_removed": heads,
        "channels_removed": channels,
        "seed": inputs.seed,
    }


def _removed(sites: Sites, kept: Kept) -> tuple[int, int]:
    """Return how many heads and channels go, those of removed blocks not counted."""
    heads = {site.path: site.num_heads for site in sites.attention}
    widths = {site.path: site.width for site in sites.mlp}
    return (
        sum(heads[path] - len(ids) for path, ids in kept.heads.items()),
        sum(widths[path] - len(ids) for path, ids in kept.channels.items()),
    )


def _summary(sites: Sites, kept: Kept, before: Size, after: Size) -> str:
    heads, channels = _removed(sites, kept)
    all_heads = sum(site.num_heads for site in sites.attention)
    all_channels = sum(site.width for site in sites.mlp)
    text = (
        f"pruned {heads} of {all_heads} heads, {channels} of {all_channels} MLP channels and "
        f"{len(kept.removed_blocks)} of {len(sites.blocks)} blocks: "
        f"{before.parameters / 1e6:.2f} to {after.parameters / 1e6:.2f} million parameters"
    )
    if before.gmacs is None or after.gmacs is None:
        return text
    return f"{text}, {before.gmacs:.3g} to {after.gmacs:.3g} GMACs"
