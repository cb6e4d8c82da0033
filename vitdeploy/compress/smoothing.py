"""Which activations an exact fold can reshape before INT8, and how strongly each should be.

A fold turns x into (x - z) / s per channel and undoes it in the weights that read x. Per-tensor
activation ranges gain where channels become alike, per-output-channel weights lose where their
rows become unlike; both errors are estimated at the product's output and the smallest sum wins,
"no fold" always being a candidate. The candidates (SmoothQuant's s = a^alpha / w^(1 - alpha),
2211.10438, and the shift of Outlier Suppression+, 2304.09145) undo an outlier that an earlier fold
hid in the weights exactly: multiplying a channel by k multiplies its s by k for every alpha.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.calibrate import ChannelStatistics
from vitdeploy.graph.folds import depthwise_scale, layernorm_scale, value_scale
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.graph.readership import Readership
from vitdeploy.graph.sites import WeightSite, kernel_matrix

ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SMALLEST = 1e-6
"""Share of the largest magnitude below which a channel counts as silent and is not scaled up."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A quantised product that reads the group's activation."""

    site: WeightSite
    channels: np.ndarray
    """(in,) int: the group's channel in each of the product's input channels."""


@dataclass(frozen=True, eq=False)
class FoldGroup:
    """An activation whose channels may be scaled (and shifted) exactly, with all its readers."""

    name: str
    fold: str
    """Key of `graph.folds.FOLDS`."""
    channels: int
    readers: tuple[Reader, ...]
    can_shift: bool
    apply_: Callable[[ir.Model, np.ndarray, np.ndarray], None]
    """apply_(model, scale (C,), shift (C,)) edits the graph in place."""


@dataclass(frozen=True, eq=False)
class Strength:
    """One way to fold a group; alpha None means no scaling."""

    alpha: float | None
    shifted: bool
    scale: np.ndarray
    """(C,) float64, positive."""
    shift: np.ndarray
    """(C,) float64."""

    @property
    def label(self) -> str:
        """`off`, `shift`, `0.5` or `0.5+shift`: what a recipe pins."""
        if self.alpha is None:
            return "shift" if self.shifted else "off"
        return f"{self.alpha:g}+shift" if self.shifted else f"{self.alpha:g}"


@dataclass(frozen=True)
class Refusal:
    """A site no fold applies to."""

    name: str
    fold: str
    reason: str


def find_groups(
    model: ir.Model, sites: Sequence[WeightSite]
) -> tuple[list[FoldGroup], list[Refusal]]:
    """Return the groups all of whose readers are quantised, and why others are none."""
    by_node = {site.node: site for site in sites}
    groups: list[FoldGroup] = []
    refusals: list[Refusal] = []
    taken: set[str] = set()
    for found in (_norm_groups, _value_groups, _depthwise_groups):
        for name, fold, made in found(model, by_node):
            if isinstance(made, str):
                refusals.append(Refusal(name, fold, made))
            elif not taken & {reader.site.name for reader in made.readers}:
                taken |= {reader.site.name for reader in made.readers}
                groups.append(made)
    return groups, refusals


def strengths(
    group: FoldGroup, statistics: Mapping[str, ChannelStatistics], scheme: QuantScheme
) -> list[Strength]:
    """Return every candidate of a group, best estimated output error first."""
    low, high = _group_range(group, statistics)
    weights = _group_weights(group)
    shifts = [np.zeros(group.channels)]
    if group.can_shift:
        shifts.append((low + high) / 2.0)
    candidates = []
    for number, shift in enumerate(shifts):
        magnitude = np.maximum(np.abs(low - shift), np.abs(high - shift))
        candidates.append(Strength(None, number > 0, np.ones(group.channels), shift))
        for alpha in ALPHAS:
            scale = smoothing_scale(magnitude, weights, alpha)
            candidates.append(Strength(alpha, number > 0, scale, shift))
    return sorted(candidates, key=lambda c: _estimated_error(group, c, statistics, scheme))


def strength_from_label(
    group: FoldGroup, label: str, statistics: Mapping[str, ChannelStatistics]
) -> Strength:
    """Return the strength a recipe pinned.

    Raises:
        ValueError: the label is none of `Strength.label`, or asks for a shift that is not exact.
    """
    low, high = _group_range(group, statistics)
    shifted = label.endswith("shift")
    if shifted and not group.can_shift:
        raise ValueError(f"'{group.name}' cannot be shifted exactly")
    shift = (low + high) / 2.0 if shifted else np.zeros(group.channels)
    if label in ("off", "shift"):
        return Strength(None, shifted, np.ones(group.channels), shift)
    alpha = float(label.removesuffix("+shift"))
    magnitude = np.maximum(np.abs(low - shift), np.abs(high - shift))
    return Strength(alpha, shifted, smoothing_scale(magnitude, _group_weights(group), alpha), shift)


def smoothing_scale(magnitude: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """Return s = a^alpha / w^(1 - alpha) with geometric mean 1; silent channels get 1.

    Args:
        magnitude: (C,) largest |x| per channel.
        weights: (C,) largest |W| per channel.
        alpha: 0..1; 1 makes all channels alike, 0 all weight rows.
    """
    loud = (magnitude > _SMALLEST * magnitude.max()) & (weights > _SMALLEST * weights.max())
    if not loud.any():
        return np.ones_like(magnitude)
    logarithm = np.zeros_like(magnitude)
    logarithm[loud] = alpha * np.log(magnitude[loud]) - (1 - alpha) * np.log(weights[loud])
    logarithm[loud] -= logarithm[loud].mean()
    scale: np.ndarray = np.exp(logarithm)
    return scale


def weight_error(
    group: FoldGroup,
    strength: Strength,
    statistics: Mapping[str, ChannelStatistics],
    scheme: QuantScheme,
) -> float:
    """Return the estimated squared output error per position that rounding the weights adds.

    Rounding noise is uniform over a step: sum over c of Var[x_c] * sum over o of step_o^2 / 12.
    The mean of x drops out, since bias correction removes what it adds.
    """
    codes = 2.0 ** (scheme.weight_bits - 1) - 1
    total = 0.0
    for reader in group.readers:
        matrix = kernel_matrix(reader.site) * strength.scale[reader.channels][:, None, None]
        steps = np.abs(matrix).max(axis=(0, 2)) / codes
        variance = statistics[str(reader.site.activation.name)].variance
        spread = variance / np.square(strength.scale[reader.channels])
        total += float(spread.sum() * np.square(steps).sum() / 12.0 * matrix.shape[2])
    return total


def _estimated_error(
    group: FoldGroup,
    strength: Strength,
    statistics: Mapping[str, ChannelStatistics],
    scheme: QuantScheme,
) -> float:
    """Return weight error plus the activation's rounding noise at the products' outputs."""
    total = weight_error(group, strength, statistics, scheme)
    for reader in group.readers:
        own = statistics[str(reader.site.activation.name)]
        scale, shift = strength.scale[reader.channels], strength.shift[reader.channels]
        folded = own.folded(scale, shift)
        step = float(folded.range.parameters(scheme)[0])
        # A channel far below one step is rounded away as a whole: its power bounds its error.
        noise = np.minimum(step**2 / 12.0, folded.square + step**2 / 1e4) * np.square(scale)
        total += float((noise * np.square(kernel_matrix(reader.site)).sum(axis=(1, 2))).sum())
    return total


def _group_range(
    group: FoldGroup, statistics: Mapping[str, ChannelStatistics]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (C,) lowest and highest value over all activations of the group."""
    low = np.full(group.channels, np.inf)
    high = np.full(group.channels, -np.inf)
    for reader in group.readers:
        own = statistics[str(reader.site.activation.name)]
        np.minimum.at(low, reader.channels, own.low.astype(np.float64))
        np.maximum.at(high, reader.channels, own.high.astype(np.float64))
    return low, high


def _group_weights(group: FoldGroup) -> np.ndarray:
    """Return (C,) the largest |W| that reads each channel."""
    largest = np.zeros(group.channels)
    for reader in group.readers:
        rows = np.abs(kernel_matrix(reader.site)).max(axis=(1, 2))
        np.maximum.at(largest, reader.channels, rows)
    return largest


_Found = Iterator[tuple[str, str, "FoldGroup | str"]]


def _norm_groups(model: ir.Model, by_node: Mapping[ir.Node, WeightSite]) -> _Found:
    for site in layernorm_scale.find(model):
        readers = _readers(site.readers, by_node)
        reason = layernorm_scale.applies(site) or _missing(readers)
        if reason or isinstance(readers, str):
            yield site.name, "layernorm_scale", str(reason)
            continue
        shift = layernorm_scale.shift_applies(site) is None
        apply_ = partial(_apply_norm_, site)
        yield (
            site.name,
            "layernorm_scale",
            FoldGroup(site.name, "layernorm_scale", site.channels, readers, shift, apply_),
        )


def _apply_norm_(
    site: layernorm_scale.Site, model: ir.Model, scale: np.ndarray, shift: np.ndarray
) -> None:
    layernorm_scale.apply_(model, site, scale, shift)


def _value_groups(model: ir.Model, by_node: Mapping[ir.Node, WeightSite]) -> _Found:
    for site in value_scale.find(model):
        output, rows = site.attention.output, site.attention.output_rows
        reason = value_scale.applies(site)
        if output is None or rows is None:
            yield site.name, "value_scale", reason or "it has no output projection"
            continue
        if reason is None and output.node not in by_node:
            reason = "its output projection stays in float"
        if reason is None and rows.size != output.in_channels:
            reason = "its output projection reads more than the values"
        if reason is not None:
            yield site.name, "value_scale", reason
            continue
        channels = np.argsort(rows.reshape(-1))
        reader = Reader(by_node[output.node], channels)
        shift = value_scale.shift_applies(site, softmax_is_float=True) is None
        apply_ = partial(_apply_value_, site, rows.shape)
        yield (
            site.name,
            "value_scale",
            FoldGroup(site.name, "value_scale", rows.size, (reader,), shift, apply_),
        )


def _apply_value_(
    site: value_scale.Site,
    shape: tuple[int, ...],
    model: ir.Model,
    scale: np.ndarray,
    shift: np.ndarray,
) -> None:
    # `search` shifts no values where the softmax may be quantised, so that rows sum to one here.
    value_scale.apply_(
        model, site, scale.reshape(shape), shift.reshape(shape), softmax_is_float=True
    )


def _depthwise_groups(model: ir.Model, by_node: Mapping[ir.Node, WeightSite]) -> _Found:
    for site in depthwise_scale.find(model):
        if site.depthwise.node in by_node:
            # Its own output channels are then quantised per tensor too; leave them as they are.
            yield site.name, "depthwise_scale", "the depthwise convolution is quantised itself"
            continue
        readers = _readers(site.readers, by_node)
        reason = depthwise_scale.applies(site) or _missing(readers)
        if reason or isinstance(readers, str):
            yield site.name, "depthwise_scale", str(reason)
            continue
        apply_ = partial(_apply_depthwise_, site)
        channels = site.depthwise.out_channels
        yield (
            site.name,
            "depthwise_scale",
            FoldGroup(
                site.name, "depthwise_scale", channels, readers, can_shift=False, apply_=apply_
            ),
        )


def _apply_depthwise_(
    site: depthwise_scale.Site, model: ir.Model, scale: np.ndarray, shift: np.ndarray
) -> None:
    depthwise_scale.apply_(model, site, scale)


def _readers(found: Readership, by_node: Mapping[ir.Node, WeightSite]) -> tuple[Reader, ...] | str:
    readers = []
    for linear, channels in found.layers:
        if linear.node not in by_node:
            return f"its reader {linear.name} stays in float"
        readers.append(Reader(by_node[linear.node], np.asarray(channels)))
    return tuple(readers)


def _missing(readers: tuple[Reader, ...] | str) -> str | None:
    return readers if isinstance(readers, str) else None
