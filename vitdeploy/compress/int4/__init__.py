"""INT4 weights in blocks, activations left in float: half of INT8's size again.

Products with constant weights become INT4 where a block divides their input channels; embeddings,
convolutions, heads and what is too noisy stay INT8, LayerNorm, biases and small tensors in float.
One graph serves all targets; what their engines compute on activations is theirs to say
(`targets`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches
from vitdeploy.compress.int4.bits import (
    DEFAULT_SQNR_DB,
    Bits,
    Goal,
    Stored,
    choose_bits,
    corrected_bias,
)
from vitdeploy.compress.int4.codes import InputMoments, gptq, nearest
from vitdeploy.compress.int4.gathering import MomentStore, gathered_moments
from vitdeploy.compress.int4.scaling import OFF, Rounding, choose_scale, scale_of
from vitdeploy.compress.int4.sizes import (
    SMALLEST_WEIGHT,
    int4_bytes,
    int8_bytes,
    is_stored,
    spare_bytes,
)
from vitdeploy.compress.rounding import LEAST_ROWS_PER_CHANNEL, rows_of
from vitdeploy.compress.smoothing import FoldGroup, find_groups
from vitdeploy.errors import CompressionError, suggest
from vitdeploy.graph.blocks import LEAST_BLOCK, BlockedWeight, block_of, insert_weights_
from vitdeploy.graph.gemm import matmul_from_gemm_
from vitdeploy.graph.linear import linear_at, set_bias_
from vitdeploy.graph.pointwise import matmul_from_pointwise_conv_
from vitdeploy.graph.qdq import QuantizedWeight, quantize_weight
from vitdeploy.graph.sites import WeightSite, array_of, find_weight_sites
from vitdeploy.recipe import Int4Choices, Int4Section


@dataclass(frozen=True)
class Int4Codes:
    """The weights of every product that can be INT4, in codes; which of them are is said later."""

    labels: Mapping[str, str]
    """By group of products: how its scale was found."""
    scales: Mapping[str, np.ndarray]
    """By group (channels,): that scale, where it is not one."""
    blocks: Mapping[str, int]
    """By product: input channels that share a scale."""
    weights: Mapping[str, BlockedWeight]
    """By product."""
    biases: Mapping[str, np.ndarray | None]
    """By product (out,): the bias that takes off what the codes make on average."""


@dataclass(frozen=True)
class Int4Result:
    """The graph with stored weights, and what is true of it."""

    model: ir.Model
    int4: tuple[str, ...]
    """Node names of products with INT4 weights."""
    int8: tuple[str, ...]
    """Node names of products with INT8 weights."""
    kept_float: tuple[str, ...]
    int4_weights_percent: float
    """Share of the weights of products that are INT4, 0..100."""
    blocks: Mapping[str, int]
    """By INT4 product: input channels that share a scale."""
    choices: Int4Choices = field(default_factory=Int4Choices)
    noise: Mapping[str, float] = field(default_factory=dict)
    """By product: squared output error over squared output with its weights alone in INT4."""
    bits_reason: str | None = None
    """Why `noise` was not measured, where it was not."""
    seconds: float = 0.0
    skipped: tuple[str, ...] = ()
    """What the budget did not allow."""
    codes: Int4Codes | None = None
    """For the next call with the same scales; None where the codes were known before."""


def quantize_int4(
    model: ir.Model,
    batches: Batches,
    options: Int4Section,
    progress: Callable[[int], None] | None = None,
    pinned: Int4Choices | None = None,
    known: Int4Codes | None = None,
) -> Int4Result:
    """Return a copy of the FP32 graph with INT4 weights.

    Args:
        model: canonical FP32 graph of opset 21 or newer; not changed.
        batches: a pass over the calibration images.
        options: of the recipe.
        progress: called with the number of images seen in each pass.
        pinned: choices of an earlier run, so that nothing is searched.
        known: codes of an earlier call with this model, these images and options; taken where
            `pinned` has the same scales.

    Raises:
        CompressionError: nothing that a block divides, a name in `keep_int8` that fits no node, no
            images, NaN activations or weights.
    """
    copy = model.clone()
    matmul_from_gemm_(copy)
    matmul_from_pointwise_conv_(copy)
    every = find_weight_sites(copy)
    if known is not None and pinned is not None and pinned.scales == known.labels:
        _rescaled_(copy, known)
        bits = Bits({}, pinned.kept_int8, "pinned by the recipe")
        result = _result(copy, known, bits, pinned)
        return replace(result, codes=None)
    _require_sound(every, options.keep_int8)
    suited = [site for site in every if _is_suited(site, options)]
    with gathered_moments(copy, suited, batches, progress) as moments:
        blocks = _blocks(suited, moments, options)
        spare = spare_bytes(model, every, blocks, options)
        budget = Budget(options.search_seconds if pinned is None else math.inf)
        request = _Request(options, blocks, budget, pinned)
        scaled = _scaled_(copy, moments, request)
        with budget.paused():
            weights, stored = _rounded(copy, moments, scaled.factors, request)
    bits = _bits(copy, spare, stored, request, batches)
    choices = Int4Choices(scales=scaled.labels, kept_int8=bits.kept_int8)
    biases = {name: item.bias for name, item in stored.items()}
    codes = Int4Codes(scaled.labels, scaled.scales, blocks, weights, biases)
    result = _result(copy, codes, bits, choices)
    return replace(result, seconds=budget.spent, skipped=tuple(budget.skipped))


def _rescaled_(model: ir.Model, known: Int4Codes) -> None:
    """Scale weights up as they were before the codes were found, in place."""
    sites = [site for site in find_weight_sites(model) if site.name in known.blocks]
    groups, _ = find_groups(model, sites)
    for group in groups:
        if group.name in known.scales:
            group.apply_(model, known.scales[group.name], np.zeros(group.channels))


@dataclass(frozen=True)
class _Request:
    """What is asked for."""

    options: Int4Section
    blocks: Mapping[str, int]
    """By name of a product that can be INT4."""
    budget: Budget
    pinned: Int4Choices | None


@dataclass(frozen=True)
class _Scaled:
    """What was scaled up."""

    labels: dict[str, str] = field(default_factory=dict)
    """By group: how its scale was found."""
    scales: dict[str, np.ndarray] = field(default_factory=dict)
    """By group (channels,), those alone that change anything."""
    factors: dict[str, np.ndarray] = field(default_factory=dict)
    """By product (in,): what its input is divided by."""


def _require_sound(every: Sequence[WeightSite], keep_int8: Sequence[str]) -> None:
    for site in every:
        if not np.isfinite(array_of(site.weight)).all():
            raise CompressionError(
                f"weight '{site.weight.name}' of '{site.name}' holds NaN or infinity; "
                "the checkpoint is damaged."
            )
    names = [site.name for site in every]
    for pattern in keep_int8:
        if not any(fnmatch(name, pattern) for name in names):
            raise CompressionError(
                f"int4.keep_int8: '{pattern}' fits none of the {len(names)} products with "
                f"weights.{suggest(pattern, names)}"
            )


def _is_suited(site: WeightSite, options: Int4Section) -> bool:
    """Return whether a product can be INT4, by its weight alone."""
    weight = array_of(site.weight)
    if site.kind != "MatMul" or weight.size < SMALLEST_WEIGHT:
        return False
    if any(fnmatch(site.name, pattern) for pattern in options.keep_int8):
        return False
    # TensorRT reads two codes from a byte, along the last axis.
    return weight.shape[1] % 2 == 0 and block_of(len(weight), options.block_size) is not None


def _blocks(
    suited: Sequence[WeightSite], moments: MomentStore, options: Int4Section
) -> dict[str, int]:
    """Return the blocks of the products that become INT4: heads, one row an image, do not."""
    blocks = {}
    for site in suited:
        if not np.isfinite(moments[site.name].product).all():
            raise CompressionError(
                f"activation '{site.activation.name}' holds NaN or infinity on the calibration "
                "images. Check the model's weights and the images."
            )
        size = block_of(array_of(site.weight).shape[0], options.block_size)
        if size is not None and moments.rows_per_image(site.name) > 1:
            blocks[site.name] = size
    if not blocks:
        raise CompressionError(
            f"no product can be INT4: blocks of {options.block_size} down to {LEAST_BLOCK} divide "
            f"the input channels of none, or all are convolutions, heads, smaller than "
            f"{SMALLEST_WEIGHT} weights, or kept by int4.keep_int8. Use --int8."
        )
    return blocks


def _scaled_(model: ir.Model, moments: MomentStore, request: _Request) -> _Scaled:
    """Scale loud channels' weights up, in place."""
    done = _Scaled()
    if request.options.scales == "off":
        return done
    sites = [site for site in find_weight_sites(model) if site.name in request.blocks]
    groups, _ = find_groups(model, sites)
    rounding = Rounding(request.blocks, request.options.zero_points)
    last = 0.0
    for number, group in enumerate(groups):
        label = OFF
        if request.pinned is not None:
            label = request.pinned.scales.get(group.name, OFF)
        elif request.budget.affords(last, f"scales of {len(groups) - number} groups"):
            start = request.budget.spent
            label = choose_scale(group, moments, rounding)
            last = request.budget.spent - start
        else:
            break
        done.labels[group.name] = label
        _apply_scale_(model, group, label, moments, done)
    return done


def _apply_scale_(
    model: ir.Model, group: FoldGroup, label: str, moments: MomentStore, done: _Scaled
) -> None:
    if label == OFF:
        return
    try:
        scale = scale_of(group, label, moments)
    except ValueError as error:
        raise CompressionError(
            f"int4.choices: '{group.name}' has scale '{label}': {error}"
        ) from error
    group.apply_(model, scale, np.zeros(group.channels))
    done.scales[group.name] = scale
    for reader in group.readers:
        done.factors[reader.site.name] = scale[reader.channels]


def _rounded(
    model: ir.Model, moments: MomentStore, factors: Mapping[str, np.ndarray], request: _Request
) -> tuple[dict[str, BlockedWeight], dict[str, Stored]]:
    """Return by product its INT4 codes, and what they and the corrected bias stand for."""
    weights: dict[str, BlockedWeight] = {}
    stored: dict[str, Stored] = {}
    zero_points = request.options.zero_points
    for site in find_weight_sites(model):
        if site.name not in request.blocks:
            continue
        own = moments[site.name]
        if site.name in factors:
            own = own.scaled(factors[site.name])
        matrix, size = rows_of(site), request.blocks[site.name]
        enough = moments.rows(site.name) >= LEAST_ROWS_PER_CHANNEL * matrix.shape[1]
        if request.options.rounding == "nearest":  # the control: nothing of the images is used
            weight = nearest(matrix, size, zero_points=zero_points)
            own = InputMoments(own.product)
        elif enough:
            weight = gptq(matrix, size, own.product, zero_points=zero_points)
        else:  # the moments say little of how channels go together
            weight = nearest(matrix, size, np.diag(own.product), zero_points=zero_points)
        weights[site.name] = weight
        real = weight.dequantized()
        extra = int8_bytes(site) - int4_bytes(site, size, zero_points=zero_points)
        stored[site.name] = Stored(real, corrected_bias(site, real, own.mean), extra)
    return weights, stored


def _bits(
    model: ir.Model,
    spare: float | None,
    stored: Mapping[str, Stored],
    request: _Request,
    batches: Batches,
) -> Bits:
    """Return which products stay INT8: as pinned, as measured, or none."""
    options = request.options
    if request.pinned is not None:
        return Bits({}, request.pinned.kept_int8, "pinned by the recipe")
    if options.placement == "all" and not options.mixed:
        return Bits({}, (), "the recipe asks for every product in INT4")
    goal = Goal()
    if options.mixed and spare is not None:
        goal = Goal(spare_bytes=spare)
    elif options.mixed:
        goal = Goal(sqnr_db=options.min_sqnr_db or DEFAULT_SQNR_DB)
    return choose_bits(model, stored, goal, batches, request.budget)


def _result(model: ir.Model, codes: Int4Codes, bits: Bits, choices: Int4Choices) -> Int4Result:
    """Return the graph, scaled up already, with the weights that were chosen."""
    every = find_weight_sites(model)
    sizes = {site.name: array_of(site.weight).size for site in every}
    chosen: dict[str, BlockedWeight | QuantizedWeight] = {}
    for site in every:
        if site.name in codes.weights and site.name not in bits.kept_int8:
            chosen[site.name] = codes.weights[site.name]
            corrected, linear = codes.biases[site.name], linear_at(site.node)
            if corrected is not None and linear is not None:
                set_bias_(model.graph, linear, corrected)
        elif is_stored(site):
            chosen[site.name] = quantize_weight(array_of(site.weight), site.output_axis)
    insert_weights_(model, chosen)
    int4 = tuple(name for name, item in chosen.items() if isinstance(item, BlockedWeight))
    return Int4Result(
        model=model,
        int4=int4,
        int8=tuple(name for name in chosen if name not in int4),
        kept_float=tuple(name for name in sizes if name not in chosen),
        int4_weights_percent=100.0 * sum(sizes[name] for name in int4) / sum(sizes.values()),
        blocks={name: codes.blocks[name] for name in int4},
        choices=choices,
        noise=bits.noise,
        bits_reason=bits.reason,
        codes=codes,
    )
