"""INT8 attention: which sites, with which ranges.

Products of two activations gain speed only where a runtime fuses the whole attention, which
TensorRT does. Each site is measured alone at the model's output, on other images than those that
gave its ranges, and the quietest are taken while their noise stays small.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.attention_ranges import (
    attention_ranges,
    images_for_extremes,
    images_in,
)
from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches, limited
from vitdeploy.compress.placement import relative_noise
from vitdeploy.errors import CompressionError, suggest
from vitdeploy.graph.attention import AttentionGraphSite, find_attention
from vitdeploy.graph.attention_qdq import (
    insert_attention_qdq_,
    is_packable,
    operands,
    tokens_of,
)
from vitdeploy.graph.qdq import ActivationRange, QuantScheme
from vitdeploy.graph.sites import add_initializer
from vitdeploy.runner import Feeds, Outputs

ATTENTION_SHARE = 0.15
"""Of the search's whole budget, kept for this."""
ATTENTION_IMAGES = 256
"""Calibration images in all; half of them give the ceilings, the others judge, and of both as many
are read as the time allows. On few, ceilings are found that rare images pay for (vit-digits on
OpenVINO: 44 dB on 16, 51 on 64, 60 on 256)."""
_JUDGED_TOGETHER = 4
"""Images in a run of the graph that judges; of the search's, as many as the time allows."""
_CEILING_SHARE = 0.4
"""Of the time left then."""
_RANGE_COST = 1.5
"""What an image costs while ranges are taken, in passes of the FP32 graph."""
_RUNS_TOGETHER = 4
"""Of one image: the reference, the INT8 products, attention in float, all attention in INT8."""
_RUN_COST = 2.0
_BUILDS = 4
"""Graphs to make ready: of the ranges, the reference, the INT8 products, the switches."""
_GATES = "vitdeploy_attention_gates"


@dataclass(frozen=True)
class AttentionRequest:
    """What the choice needs to know."""

    original: ir.Model
    """The FP32 model as it came, which is the reference."""
    folded: ir.Model
    """FP32 graph of the nodes and names of the quantised one."""
    macs: float
    """Of its products with weights, for one image."""
    scheme: QuantScheme
    batches: Batches
    budget: Budget
    pinned: Mapping[str, float] | None = None
    """Sites and softmax ceilings that an earlier run chose; nothing is searched then."""


@dataclass(frozen=True)
class AttentionInt8:
    """What was chosen."""

    ceilings: Mapping[str, float] = field(default_factory=dict)
    """By site that is INT8 throughout: the largest softmax value that its codes reach."""
    kept_float: tuple[tuple[str, str], ...] = ()
    """(site, reason)."""
    noise: Mapping[str, float] = field(default_factory=dict)
    """By site measured: squared output error over squared output, that site alone in INT8."""


def quantize_attention_(quantized: ir.Model, request: AttentionRequest) -> AttentionInt8:
    """Quantise attention in place, in a graph whose other products are quantised already.

    Raises:
        CompressionError: a pinned name that fits no site.
    """
    sites, kept = _eligible(quantized, request)
    if request.pinned is not None:
        sites = _pinned(sites, request.pinned)
    if not sites:
        return AttentionInt8(kept_float=tuple(kept))
    fitted, judged = _halves(request)
    is_fixed = _is_fixed(request)
    images = images_for_extremes(request.batches, request.macs, is_fixed=is_fixed)
    reason = _too_slow_reason(request, images, judged)
    if request.pinned is None and reason is not None:
        return AttentionInt8(kept_float=(*kept, *((site.name, reason) for site in sites)))
    ranges = attention_ranges(request.folded, sites, request.scheme, images)
    noise: dict[str, float] = {}
    chosen = [site.name for site in sites]
    if request.pinned is None:
        is_over = request.budget.until(_CEILING_SHARE)
        ranges.find_ceilings_(limited(fitted, ATTENTION_IMAGES, is_over))
        measured = _measure(sites, ranges.judged, quantized, replace(request, batches=judged))
        if measured is None:
            reason = f"measuring its noise would take more than {request.budget.left:.3g} s"
            return AttentionInt8(kept_float=(*kept, *((site.name, reason) for site in sites)))
        noise, chosen = measured
    else:
        ranges.set_ceilings_(request.pinned)
    insert_attention_qdq_(
        quantized, [site for site in sites if site.name in chosen], ranges.whole, request.scheme
    )
    kept += [(s.name, "its noise is out of proportion") for s in sites if s.name not in chosen]
    ceilings = ranges.ceilings()
    return AttentionInt8({name: ceilings[name] for name in chosen}, tuple(kept), noise)


def quietest(
    noise: Mapping[str, float], spare: float, noise_of: Callable[[Sequence[str]], float]
) -> list[str]:
    """Return the largest set of quiet sites whose noise together is at most `spare`.

    Args:
        noise: of each site alone.
        spare: of all together.
        noise_of: measures a set, for noises do not simply add up.
    """
    ranked = sorted(noise, key=lambda name: noise[name])
    fits, too_many = 0, len(ranked) + 1
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        if noise_of(ranked[:count]) <= spare:
            fits = count
        else:
            too_many = count
    return [name for name in noise if name in ranked[:fits]]


def _eligible(
    quantized: ir.Model, request: AttentionRequest
) -> tuple[list[AttentionGraphSite], list[tuple[str, str]]]:
    """Return the sites that the runtime fuses in INT8, and (name, reason) of the others."""
    nodes = {str(node.name): node for node in quantized.graph}
    sites, others = [], []
    for site in find_attention(request.folded):
        reason = _unfused_reason(site, nodes, request.scheme)
        if reason is None:
            sites.append(site)
        else:
            others.append((site.name, reason))
    return sites, others


def _unfused_reason(
    site: AttentionGraphSite, nodes: Mapping[str, ir.Node], scheme: QuantScheme
) -> str | None:
    """Return why INT8 attention would fall apart into many kernels here, or None."""
    tokens, limit = tokens_of(site), scheme.most_int8_attention_tokens
    if tokens is None:
        return "the graph does not tell its number of tokens"
    if tokens > limit:
        return f"{tokens} tokens, and INT8 attention fuses up to {limit}"
    if scheme.packs_attention:
        if not is_packable(site):
            return "q, k and v do not reach their products as one layer gives them"
        return (
            "it has a bias, behind which INT8 attention is no faster" if site.bias_nodes else None
        )
    if scheme.int8_attention_head_dims and site.head_dim not in scheme.int8_attention_head_dims:
        allowed = ", ".join(map(str, scheme.int8_attention_head_dims))
        return f"heads of {site.head_dim} channels, and INT8 attention fuses with {allowed}"
    if site.output is None:
        return "no single layer reads its result"
    read = nodes[site.output.name].inputs[0]
    maker = read.producer() if read is not None else None
    if maker is None or maker.op_type != "DequantizeLinear":
        return "the layer after it is float, and INT8 attention fuses only before an INT8 one"
    return None


def _pinned(
    sites: Sequence[AttentionGraphSite], names: Mapping[str, float]
) -> list[AttentionGraphSite]:
    known = {site.name: site for site in sites}
    for name in names:
        if name not in known:
            raise CompressionError(
                f"int8.choices name the attention '{name}', which this graph does not have or "
                "which cannot be INT8; remove int8.choices from the recipe to search again."
                f"{suggest(name, known)}"
            )
    return [known[name] for name in names]


def _halves(request: AttentionRequest) -> tuple[Batches, Batches]:
    """Return the images that give ranges and ceilings, and those that judge them, a few at a time.

    On images that gave its ceiling, a site of vit-digits had a hundredth of the noise that it
    makes on others.
    """
    listed = list(request.batches())
    others = listed[1::2] or listed
    if not _is_fixed(request):
        others = [
            {name: value[start : start + _JUDGED_TOGETHER] for name, value in feeds.items()}
            for feeds in others
            for start in range(0, images_in(feeds), _JUDGED_TOGETHER)
        ]
    return lambda: iter(listed[0::2]), lambda: iter(others)


def _too_slow_reason(
    request: AttentionRequest, images: Sequence[Feeds], judged: Batches
) -> str | None:
    """Return why not even all attention at once can be judged on one batch, or None."""
    budget = request.budget
    runs = _RANGE_COST * sum(map(images_in, images))
    runs += _RUN_COST * _RUNS_TOGETHER * images_in(next(iter(judged())))
    seconds = runs * budget.image_seconds + _BUILDS * budget.build_seconds
    if budget.left > 0 and seconds <= budget.left:
        return None
    return f"measuring its noise would take more than {budget.left:.3g} s"


def _measure(
    sites: Sequence[AttentionGraphSite],
    ranges: Mapping[str, ActivationRange],
    quantized: ir.Model,
    request: AttentionRequest,
) -> tuple[dict[str, float], list[str]] | None:
    """Return each site's noise and the sites to quantise; None where there is no time."""
    from vitdeploy.targets.onnx import runner_from_model

    names = [site.name for site in sites]
    sets = 1 + math.log2(1 + len(names))  # that `quietest` measures
    switched = _with_switches(request.folded, sites, ranges, request.scheme)
    products, seconds = 0.0, 0.0
    read: list[tuple[Feeds, Outputs]] = []
    # Optimised away otherwise: the Q/DQ pairs and the switches are meant to be computed.
    settings = {"session.disable_quant_qdq": "1"}
    with (
        runner_from_model(request.original) as reference,
        runner_from_model(quantized, settings=settings) as int8,
        runner_from_model(switched, settings=settings) as runner,
    ):
        for feeds in request.batches():
            start = request.budget.spent
            off = runner({**feeds, _GATES: np.zeros(len(names), bool)})
            seconds = request.budget.spent - start
            products += relative_noise(reference(feeds), int8(feeds))
            read.append((feeds, off))
            # All at once are judged on these, and where that is too noisy, sets of sites.
            if seconds * (3 * _RUNS_TOGETHER + sets * len(read)) > request.budget.left:
                break

        def noise_of(chosen: Sequence[str], seen: Sequence[tuple[Feeds, Outputs]]) -> float:
            gates = np.asarray([name in chosen for name in names])
            rows = [relative_noise(off, runner({**f, _GATES: gates})) for f, off in seen]
            return sum(rows) / len(seen)

        scheme = request.scheme
        share = scheme.attention_noise_share * products / len(read)
        spare = max(share, scheme.attention_noise_floor)
        if noise_of(names, read) <= spare:
            return {}, names
        if (len(names) + sets) * len(read) * seconds <= request.budget.left:
            alone, whole = read, read
        else:
            # one image ranks the sites, and one batch judges where there is no time for more
            feeds, off = read[0]
            alone = read[:1] if _is_fixed(request) else [(_first(feeds), _first(off))]
            ranking = len(names) * images_in(alone[0][0]) / images_in(feeds)
            whole = read[: int((request.budget.left / seconds - ranking) / sets)]
            if not whole:
                return None
        noise = {name: noise_of([name], alone) for name in names}
        return noise, quietest(noise, spare, lambda chosen: noise_of(chosen, whole))


def _with_switches(
    model: ir.Model,
    sites: Sequence[AttentionGraphSite],
    ranges: Mapping[str, ActivationRange],
    scheme: QuantScheme,
) -> ir.Model:
    """Return a copy in which a bool input (sites,) switches each site to INT8."""
    copy = model.clone()
    nodes = {str(node.name): node for node in copy.graph}
    places = [
        [(nodes[str(n.name)], index) for n, index in operands(site, scheme)] for site in sites
    ]
    before = [[node.inputs[index] for node, index in listed] for listed in places]
    insert_attention_qdq_(copy, sites, ranges, scheme)
    gates = ir.Value(
        name=_GATES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(sites)])
    )
    copy.graph.inputs.append(gates)
    for number, listed in enumerate(places):
        index = add_initializer(copy, f"{_GATES}_index", np.asarray(number))
        gate = ir.node("Gather", [gates, index])
        copy.graph.append(gate)
        for (node, position), value in zip(listed, before[number], strict=True):
            switch = ir.node("Where", [gate.outputs[0], node.inputs[position], value])
            copy.graph.append(switch)
            node.replace_input_with(position, switch.outputs[0])
    copy.graph.sort()
    return copy


def _is_fixed(request: AttentionRequest) -> bool:
    """Return whether the graph takes batches of one size only."""
    shape = request.folded.graph.inputs[0].shape
    return shape is not None and isinstance(shape[0], int)


def _first(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[:1] for name, value in values.items()}
