"""Which products stay INT8: by the noise that each one's INT4 weights add to the model's output.

One graph with a switch per product measures them all, one at a time, on calibration images. What
is kept follows from a goal: nothing out of proportion, a size, or an SQNR.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches
from vitdeploy.compress.placement import (
    LEAST_PASSES,
    first_images,
    halved,
    relative_noise,
)
from vitdeploy.graph.linear import bias_of, linear_at
from vitdeploy.graph.sites import WeightSite, add_initializer, array_of, find_weight_sites
from vitdeploy.runner import Feeds, Outputs, Runner

NOISE_PER_WEIGHT = 4.0
"""A product stays INT8 where its share of the noise is this many times its share of the weights."""
LEAST_INT4_PERCENT = 90.0
"""Of the weights that can be INT4, unless bits are chosen for a goal."""
DEFAULT_SQNR_DB = 30.0
"""Goal of mixed bits where none is given."""
MOST_BYTES = 1 << 30
"""Of weights that are switched: they are in memory three times."""
_LEAST_NOISE_SHARE = 0.01
_MAX_IMAGES = 16
_GATES = "vitdeploy_gates"


@dataclass(frozen=True)
class Stored:
    """What one product's INT4 weights stand for."""

    weight: np.ndarray
    """The weight's shape, float32."""
    bias: np.ndarray | None
    """Corrected, of the bias' shape; None where there is none."""
    extra_bytes: float
    """What the product takes more in INT8."""


@dataclass(frozen=True)
class Goal:
    """What bits are chosen for; at most one of the two is given."""

    spare_bytes: float | None = None
    """What may be spent on products in INT8."""
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Bits:
    """What was measured and what follows."""

    noise: dict[str, float]
    """By site: squared output error over squared output, that site alone in INT4."""
    kept_int8: tuple[str, ...]
    """Worst for their size first."""
    reason: str | None = None
    """Why nothing was measured, where nothing was."""


def choose_bits(
    model: ir.Model,
    stored: Mapping[str, Stored],
    goal: Goal,
    batches: Batches,
    budget: Budget,
) -> Bits:
    """Return the products that stay INT8.

    Args:
        model: FP32 graph with the folds applied; not changed.
        stored: by site name, all that could be INT4.
        goal: of the choice; none keeps what is out of proportion.
        batches: a pass over the calibration images; at most 16 images are read.
        budget: products are measured in groups where one image for every product exceeds it; where
            that does too, errors of the weights themselves stand in for the noise.
    """
    sizes = {name: float(item.weight.size) for name, item in stored.items()}
    if 4 * sum(sizes.values()) > MOST_BYTES:
        noise = _weight_noise(model, stored)
        reason = f"{sum(sizes.values()) / 1e6:.0f} million weights are too many to switch"
        return Bits(noise, _kept(noise, stored, goal), reason)
    from vitdeploy.targets.onnx import runner_from_model

    with runner_from_model(_with_switches(model, stored)) as runner:
        names = list(stored)
        read = _read(runner, len(names), batches, budget)
        passes = 0
        if not read:
            read, passes = _one_image(runner, model, len(names), batches, budget)
        if not read:
            noise = _weight_noise(model, stored)
            reason = f"{LEAST_PASSES} passes of one image exceed the budget"
            return Bits(noise, _kept(noise, stored, goal), reason)

        def measure(switched: Collection[str]) -> float:
            gates = np.asarray([name in switched for name in names])
            found = (relative_noise(want, runner({**f, _GATES: gates})) for f, want in read)
            return sum(found) / len(read)

        if passes:
            noise = halved(names, sizes, measure, passes)
        else:
            noise = {name: measure({name}) for name in names}
        if goal.sqnr_db is None:
            return Bits(noise, _kept(noise, stored, goal))
        order = sorted(names, key=lambda name: -noise[name] / sizes[name])
        return Bits(noise, _fewest(order, goal.sqnr_db, measure))


def _kept(noise: Mapping[str, float], stored: Mapping[str, Stored], goal: Goal) -> tuple[str, ...]:
    """Return what stays INT8, from noise that is taken to add up."""
    sizes = {name: float(item.weight.size) for name, item in stored.items()}
    order = sorted(noise, key=lambda name: -noise[name] / sizes[name])
    if goal.sqnr_db is not None:
        total = {name: noise[name] for name in order}
        return _fewest(order, goal.sqnr_db, lambda switched: sum(total[n] for n in switched))
    if goal.spare_bytes is not None:
        kept, left = [], goal.spare_bytes
        for name in order:
            if stored[name].extra_bytes <= left:
                kept.append(name)
                left -= stored[name].extra_bytes
        return tuple(kept)
    return _out_of_proportion(order, noise, sizes)


def _out_of_proportion(
    order: Sequence[str], noise: Mapping[str, float], sizes: Mapping[str, float]
) -> tuple[str, ...]:
    kept: list[str] = []
    spare = (1.0 - LEAST_INT4_PERCENT / 100.0) * sum(sizes.values())
    noise_left, size_left = sum(noise.values()), sum(sizes.values())
    for name in order[:-1]:
        share = noise[name] / max(noise_left, 1e-300)
        if share < max(NOISE_PER_WEIGHT * sizes[name] / size_left, _LEAST_NOISE_SHARE):
            break
        if sizes[name] <= spare:
            kept.append(name)
            spare -= sizes[name]
        noise_left -= noise[name]
        size_left -= sizes[name]
    return tuple(kept)


def _fewest(
    order: Sequence[str], sqnr_db: float, measure: Callable[[Collection[str]], float]
) -> tuple[str, ...]:
    """Return the shortest start of `order` without which the noise is as small as asked."""
    most = 10.0 ** (-sqnr_db / 10.0)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if measure(set(order[middle:])) <= most:
            high = middle
        else:
            low = middle + 1
    return tuple(order[:low])


def _read(
    runner: Runner, count: int, batches: Batches, budget: Budget
) -> list[tuple[Feeds, Outputs]]:
    """Return feeds and FP32 outputs of as many images as can be measured with every product."""
    read: list[tuple[Feeds, Outputs]] = []
    images, spent = 0, 0.0
    for feeds in batches():
        if images >= _MAX_IMAGES:
            break
        start = time.perf_counter()
        outputs = runner({**feeds, _GATES: np.zeros(count, bool)})
        spent += (time.perf_counter() - start) * count
        if spent > budget.left:
            budget.skipped.append("which products are too noisy for INT4, on all images")
            break
        read.append((feeds, outputs))
        images += len(next(iter(feeds.values())))
    return read


def _one_image(
    runner: Runner, model: ir.Model, count: int, batches: Batches, budget: Budget
) -> tuple[list[tuple[Feeds, Outputs]], int]:
    """Return feeds and FP32 outputs of one image, and how many passes of it there is time for.

    Nothing of both where that is too few to tell anything.
    """
    batch = next(iter(batches()), None)
    if batch is None:
        return [], 0
    feeds = first_images(model, batch, 1 / len(next(iter(batch.values())))) or batch
    start = time.perf_counter()
    outputs = runner({**feeds, _GATES: np.zeros(count, bool)})
    seconds = time.perf_counter() - start
    passes = int(min(budget.left / seconds, 2 * count))
    return ([(feeds, outputs)], passes) if passes >= LEAST_PASSES else ([], 0)


def _weight_noise(model: ir.Model, stored: Mapping[str, Stored]) -> dict[str, float]:
    """Return by site the squared error of the weights over their squares, a coarse stand-in."""
    found = {}
    for site in find_weight_sites(model):
        if site.name in stored:
            weight = array_of(site.weight).astype(np.float64)
            error = np.square(stored[site.name].weight - weight).sum()
            found[site.name] = float(error / max(np.square(weight).sum(), 1e-300))
    return found


def _with_switches(model: ir.Model, stored: Mapping[str, Stored]) -> ir.Model:
    """Return a copy in which a bool input (sites,) switches each site's weights to INT4's."""
    copy = model.clone()
    gates = ir.Value(
        name=_GATES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(stored)])
    )
    copy.graph.inputs.append(gates)
    names = list(stored)
    for site in find_weight_sites(copy):
        if site.name not in stored:
            continue
        index = add_initializer(copy, f"{_GATES}_index", np.asarray(names.index(site.name)))
        gate = ir.node("Gather", [gates, index])
        copy.graph.insert_before(site.node, gate)
        _switch_(copy, site, gate.outputs[0], stored[site.name])
    copy.graph.sort()
    return copy


def _switch_(model: ir.Model, site: WeightSite, gate: ir.Value, stored: Stored) -> None:
    linear = linear_at(site.node)
    add = None if linear is None else linear.bias_add
    if linear is not None and add is not None and stored.bias is not None:
        position = 1 if add.inputs[0] is site.node.outputs[0] else 0
        shape = array_of(add.inputs[position]).shape
        corrected = stored.bias.astype(np.float32).reshape(shape)
        _choose_(model, add, position, gate, corrected)
    _choose_(model, site.node, 1, gate, stored.weight)


def _choose_(
    model: ir.Model, node: ir.Node, position: int, gate: ir.Value, other: np.ndarray
) -> None:
    """Let an input of a node be `other` where the gate is open."""
    constant = add_initializer(model, f"{_GATES}_other", other)
    switch = ir.node("Where", [gate, constant, node.inputs[position]])
    model.graph.insert_before(node, switch)
    node.replace_input_with(position, switch.outputs[0])


def corrected_bias(
    site: WeightSite, weight: np.ndarray, mean: np.ndarray | None
) -> np.ndarray | None:
    """Return the bias (out,) less what the error of the weights adds on average.

    Args:
        site: a product whose weight is still the float one.
        weight: (in, out) that its codes stand for.
        mean: (in,) of its input; None where the product has no bias to correct.
    """
    linear = linear_at(site.node)
    if linear is None or linear.bias is None or mean is None:
        return None
    error = weight.astype(np.float64) - array_of(site.weight)
    corrected: np.ndarray = bias_of(linear) - mean.astype(np.float64) @ error
    return corrected
