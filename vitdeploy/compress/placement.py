"""Which products are worth quantising: each one's noise at the model's output against its MACs.

A few small layers (stems, downsampling convolutions, heads) often carry most of the INT8 noise
and almost none of the work. One graph with a switch per product measures them all: products
are switched to INT8 one at a time and the model's output is compared with FP32.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches
from vitdeploy.graph.qdq import ActivationRange, QuantizedWeight, QuantScheme, insert_qdq_
from vitdeploy.graph.sites import WeightSite, add_initializer, array_of, find_weight_sites
from vitdeploy.runner import Feeds, Outputs, Runner

LEAST_INT8_PERCENT = 80.0
"""What `--int8` promises: share of the MACs of products with weights."""
NOISE_PER_WORK = 4.0
"""A product stays in float where its share of the noise is this many times its share of MACs."""
_LEAST_NOISE_SHARE = 0.01
_GATES = "vitdeploy_gates"
_MAX_IMAGES = 16
PASS_COST = 2.5
"""What an image takes with all switches, in passes of the FP32 graph."""
SETS = 3
"""Sets of sites that are measured whole."""


@dataclass(frozen=True)
class Placement:
    """What was measured and what follows."""

    noise: dict[str, float]
    """By site: squared output error over squared output, that site alone in INT8."""
    kept_float: tuple[str, ...]
    """Sites whose noise is out of proportion, worst first."""
    reason: str | None = None
    """Why nothing was measured, where nothing was."""


@dataclass(frozen=True)
class Quantization:
    """How every site would be quantised."""

    ranges: Mapping[str, ActivationRange]
    weights: Mapping[str, QuantizedWeight]
    scheme: QuantScheme


def measure_placement(
    model: ir.Model,
    quantization: Quantization,
    macs: Mapping[str, float],
    batches: Batches,
    budget: Budget,
    proposed: tuple[str, ...] = (),
) -> Placement:
    """Return what each site adds to the output's noise and which sites stay in float.

    The sets that `float_sets` proposes are measured whole, for noise does not simply add up;
    the quietest is kept. NNCF's and ORT's own placements are no candidates: they quantise all that
    is quantised here and residual Adds, LayerNorms and attention besides, which only adds noise.

    Args:
        model: FP32 graph with the folds applied; not changed.
        quantization: ranges and weights of the sites in question.
        macs: by every site with weights.
        batches: a pass over the calibration images; at most 16 images are read.
        budget: nothing is measured if one image for every site takes longer.
        proposed: another set that leaves 80 % of the MACs in INT8, to be measured too.
    """
    from vitdeploy.targets.onnx import runner_from_model

    names = list(quantization.weights)
    reason = f"one pass over {len(names)} sites exceeds {budget.left:.3g} s"
    seconds = (len(names) + SETS) * PASS_COST * budget.image_seconds + 2 * budget.build_seconds
    if seconds > budget.left or not budget.left:
        return Placement({}, (), reason)
    switched = _with_switches(model, names, quantization)
    # Optimised away otherwise: the Q/DQ pairs and the switches are meant to be computed.
    with runner_from_model(switched, settings={"session.disable_quant_qdq": "1"}) as runner:
        noise = dict.fromkeys(names, 0.0)
        read: list[tuple[Feeds, Outputs]] = []
        images = 0
        for batch in batches():
            feeds = batch
            if images >= _MAX_IMAGES:
                break
            before = time.perf_counter()
            reference = runner({**feeds, _GATES: np.zeros(len(names), bool)})
            seconds = time.perf_counter() - before
            # The sets are measured at last, on all that was read.
            share = (budget.left - SETS * seconds * len(read)) / (seconds * (len(names) + SETS))
            if share < 1:
                feeds = {} if read else _smaller(model, feeds, share)
                if not feeds:
                    break
                reference = runner({**feeds, _GATES: np.zeros(len(names), bool)})
            for name in names:
                noise[name] += _noise(runner, feeds, reference, [n == name for n in names])
            read.append((feeds, reference))
            images += len(next(iter(feeds.values())))
        if not read:
            return Placement({}, (), reason)
        noise = {name: value / len(read) for name, value in noise.items()}

        def left_by(kept: tuple[str, ...]) -> float:
            gates = [name not in kept for name in names]
            return sum(_noise(runner, feeds, reference, gates) for feeds, reference in read)

        return Placement(noise, min((*float_sets(noise, macs), proposed), key=left_by))


def _smaller(model: ir.Model, feeds: Feeds, share: float) -> Feeds:
    """Return the first images of a batch, `share` of them; nothing where not one fits.

    A graph of fixed batch takes no other.
    """
    count = int(share * len(next(iter(feeds.values()))))
    first = model.graph.inputs[0].shape
    is_fixed = first is not None and isinstance(first[0], int)
    return {} if count < 1 or is_fixed else {name: v[:count] for name, v in feeds.items()}


def float_sets(
    noise: Mapping[str, float], macs: Mapping[str, float]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return two sets of sites whose noise is out of proportion to their work.

    Both leave 80 % of all MACs in INT8. The first takes the noisiest for their work while they
    fit, the second takes away most noise if noises add up.

    Args:
        noise: by site that could be quantised.
        macs: by every site with weights, the quantisable ones among them.
    """
    total_macs = sum(macs.values())
    spare = sum(macs[name] for name in noise) - LEAST_INT8_PERCENT / 100.0 * total_macs
    noisy = [name for name in _out_of_proportion(noise, macs) if macs[name] <= spare]
    first, used = [], 0.0
    for name in noisy:
        if used + macs[name] <= spare:
            first.append(name)
            used += macs[name]
    best = _knapsack([noise[name] for name in noisy], [macs[name] / spare for name in noisy])
    return tuple(first), tuple(noisy[number] for number in best)


def _out_of_proportion(noise: Mapping[str, float], macs: Mapping[str, float]) -> list[str]:
    """Return the sites whose noise is large for their work, compared with those still left."""
    left = dict(noise)
    found = []
    while len(left) > 1:
        least = _LEAST_NOISE_SHARE * sum(left.values())
        # a head or a gate of one row has next to no work, so that any noise is out of proportion
        loud = [name for name in left if left[name] > least]
        if not loud:
            break
        worst = max(loud, key=lambda name: left[name] / max(macs[name], 1.0))
        noise_share = left[worst] / sum(left.values())
        work_share = macs[worst] / sum(macs[name] for name in left)
        if noise_share < NOISE_PER_WORK * work_share:
            break
        del left[worst]
        found.append(worst)
    return found


def _knapsack(values: Sequence[float], weights: Sequence[float]) -> list[int]:
    """Return the indices, ascending, of the largest total value whose weights sum to at most 1."""
    bins = 1000
    sizes = [int(np.ceil(weight * bins)) for weight in weights]
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (bins + 1)
    for number, (value, size) in enumerate(zip(values, sizes, strict=True)):
        for room in range(bins, size - 1, -1):
            total, chosen = best[room - size]
            if total + value > best[room][0]:
                best[room] = (total + value, (*chosen, number))
    return list(best[bins][1])


def _with_switches(model: ir.Model, names: Sequence[str], quantization: Quantization) -> ir.Model:
    """Return a copy in which a bool input (sites,) switches each site to INT8."""
    copy = model.clone()
    sites = [site for site in find_weight_sites(copy) if site.name in set(names)]
    weights = {site.name: array_of(site.weight) for site in sites}
    readers = {
        site.name: [(use.node, use.idx) for use in site.node.outputs[0].uses()] for site in sites
    }
    insert_qdq_(copy, sites, quantization.ranges, quantization.scheme, quantization.weights)
    gates = ir.Value(
        name=_GATES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(names)])
    )
    copy.graph.inputs.append(gates)
    for site in sites:
        index = add_initializer(copy, f"{_GATES}_index", np.asarray(list(names).index(site.name)))
        gate = ir.node("Gather", [gates, index])
        copy.graph.insert_before(site.node, gate)
        original = add_initializer(copy, f"{site.name}_float", weights[site.name])
        for position, value in ((0, site.activation), (1, original)):
            quantized = site.node.inputs[position]
            switch = ir.node("Where", [gate.outputs[0], quantized, value])
            copy.graph.insert_before(site.node, switch)
            site.node.replace_input_with(position, switch.outputs[0])
        _switch_output(copy, site, gate.outputs[0], readers[site.name])
    copy.graph.sort()
    return copy


def _switch_output(
    model: ir.Model, site: WeightSite, gate: ir.Value, readers: Sequence[tuple[ir.Node, int]]
) -> None:
    """Let the readers of a convolution whose output is quantised see it through a switch."""
    output = site.node.outputs[0]
    for node, index in readers:
        seen = node.inputs[index]
        if seen is None or seen is output or node.op_type == "QuantizeLinear":
            continue
        if seen.producer() is None or seen.producer().op_type != "DequantizeLinear":
            continue  # already behind the switch of the site that reads it
        switch = ir.node("Where", [gate, seen, output])
        model.graph.insert_before(node, switch)
        node.replace_input_with(index, switch.outputs[0])


def _noise(runner: Runner, feeds: Feeds, reference: Outputs, gates: Sequence[bool]) -> float:
    return relative_noise(reference, runner({**feeds, _GATES: np.asarray(gates)}))


def relative_noise(reference: Outputs, value: Outputs) -> float:
    """Return squared error over squared reference, the mean of all outputs."""
    total = 0.0
    for name, expected in reference.items():
        signal = float(np.square(expected.astype(np.float64)).sum())
        error = float(np.square((value[name] - expected).astype(np.float64)).sum())
        total += error / max(signal, 1e-300)
    return total / len(reference)
