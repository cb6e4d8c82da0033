"""Which products are worth quantising: each one's noise at the model's output against its MACs.

A few small layers (stems, downsampling convolutions, heads) often carry most of the INT8 noise
and almost none of the work. One graph with a switch per product measures them all: products
are switched to INT8 one at a time and the model's output is compared with FP32. Where that takes
too long, groups of them are, and the loudest group is halved until time is up.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
LEAST_PASSES = 4
"""Groups to be measured at least; fewer say next to nothing."""
PASS_COST = 2.5
"""What an image takes with all switches, in passes of the FP32 graph."""
SETS = 3
"""Sets of sites that are measured whole."""


@dataclass(frozen=True)
class Placement:
    """What was measured and what follows."""

    noise: dict[str, float]
    """By site: squared output error over squared output, that site alone in INT8; or its share of
    a group's, where time was short."""
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
        budget: sites are measured in groups if one image for every site takes longer.
        proposed: another set that leaves 80 % of the MACs in INT8, to be measured too.
    """
    from vitdeploy.targets.onnx import runner_from_model

    names = list(quantization.weights)
    least = LEAST_PASSES + SETS
    reason = f"{least} passes of one image exceed {budget.left:.3g} s"
    seconds = least * PASS_COST * budget.image_seconds + 2 * budget.build_seconds
    if seconds > budget.left or not budget.left:
        return Placement({}, (), reason)
    switched = _with_switches(model, names, quantization)
    # Optimised away otherwise: the Q/DQ pairs and the switches are meant to be computed.
    with runner_from_model(switched, settings={"session.disable_quant_qdq": "1"}) as runner:
        measured = _Measured(runner, names)
        whole = (len(names) + SETS) * PASS_COST * budget.image_seconds
        noise = _one_by_one(measured, model, batches, budget) if whole <= budget.left else {}
        if not noise:
            noise = _by_halves(measured, model, batches, macs, budget)
        if not noise:
            return Placement({}, (), reason)

        def left_by(kept: tuple[str, ...]) -> float:
            return measured.noise_of([name for name in names if name not in kept])

        return Placement(noise, min((*float_sets(noise, macs), proposed), key=left_by))


class _Measured:
    """A graph with a switch per site, and the images it was seen on."""

    def __init__(self, runner: Runner, names: Sequence[str]) -> None:
        self.runner, self.names = runner, names
        self.read: list[tuple[Feeds, Outputs]] = []

    def reference(self, feeds: Feeds) -> tuple[Outputs, float]:
        """Return the outputs with every site in float, and the seconds that took."""
        before = time.perf_counter()
        outputs = self.runner({**feeds, _GATES: np.zeros(len(self.names), bool)})
        return outputs, time.perf_counter() - before

    def noise_of(self, switched: Collection[str]) -> float:
        """Return the noise with the given sites in INT8, over all images that were read."""
        gates = [name in switched for name in self.names]
        return sum(_noise(self.runner, feeds, seen, gates) for feeds, seen in self.read)


def _one_by_one(
    measured: _Measured, model: ir.Model, batches: Batches, budget: Budget
) -> dict[str, float]:
    """Return each site's noise, on as many images as the budget has time for; none for none."""
    names = measured.names
    noise = dict.fromkeys(names, 0.0)
    images = 0
    for batch in batches():
        feeds = batch
        if images >= _MAX_IMAGES:
            break
        reference, seconds = measured.reference(feeds)
        # The sets are measured at last, on all that was read.
        rest = budget.left - SETS * seconds * len(measured.read)
        share = rest / (seconds * (len(names) + SETS))
        if share < 1:
            feeds = {} if measured.read else first_images(model, feeds, share)
            if not feeds:
                break
            reference, _ = measured.reference(feeds)
        for name in names:
            noise[name] += _noise(measured.runner, feeds, reference, [n == name for n in names])
        measured.read.append((feeds, reference))
        images += len(next(iter(feeds.values())))
    return {name: value / len(measured.read) for name, value in noise.items() if measured.read}


def _by_halves(
    measured: _Measured,
    model: ir.Model,
    batches: Batches,
    macs: Mapping[str, float],
    budget: Budget,
) -> dict[str, float]:
    """Return each site's noise as far as the budget's passes of one image tell; none for none."""
    batch = next(iter(batches()), None)
    if batch is None:
        return {}
    feeds = first_images(model, batch, 1 / len(next(iter(batch.values())))) or batch
    reference, seconds = measured.reference(feeds)
    passes = int(budget.left / seconds) - SETS
    if passes < LEAST_PASSES:
        return {}
    measured.read.append((feeds, reference))
    return halved(measured.names, macs, measured.noise_of, passes)


def halved(
    names: Sequence[str],
    macs: Mapping[str, float],
    noise_of: Callable[[Collection[str]], float],
    passes: int,
) -> dict[str, float]:
    """Return each site's noise, found by halving the loudest group of sites again and again.

    The sites of a group that was not divided share its noise by their work, so that none of them
    is out of proportion beside the others.

    Args:
        names: sites in the order of the graph.
        macs: by site.
        noise_of: measures some sites in INT8, the others in float.
        passes: how often that may be called.
    """
    groups: dict[tuple[str, ...], float] = {tuple(names): math.inf}
    for _ in range(passes // 2):
        loudest = max(groups, key=lambda group: groups[group] if len(group) > 1 else -1.0)
        if len(loudest) == 1:
            break
        del groups[loudest]
        middle = len(loudest) // 2
        groups |= {half: noise_of(half) for half in (loudest[:middle], loudest[middle:])}
    noise: dict[str, float] = {}
    for group, value in groups.items():
        work = sum(macs[name] for name in group)
        noise |= {name: value * macs[name] / work for name in group}
    return {name: noise[name] for name in names}


def first_images(model: ir.Model, feeds: Feeds, share: float) -> Feeds:
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
