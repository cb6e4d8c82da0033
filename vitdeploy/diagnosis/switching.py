"""What the model's output loses where one product is in INT8, and gains where some are in float.

Both by one graph with a switch per INT8 product. Losing: the FP32 graph, in which each product can
be replaced by the artefact's. Gaining: the artefact, in which each can be replaced by the FP32
layer. Which products to try is decided in `advice`.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.diagnosis.measuring import (
    Batches,
    Maps,
    Probes,
    channel_shape,
    decibels,
    folded_input,
    int8_output,
    output_shape,
    run,
)
from vitdeploy.diagnosis.pairing import Pair, SitePair, clone_segment
from vitdeploy.graph.surgery import readers
from vitdeploy.runner import Feeds

_GATES = "diagnosis//gates"


@dataclass(frozen=True)
class Noise:
    """What each product adds to the error of the model's output."""

    alone: Mapping[str, float]
    """By product: squared output error over squared output, that one alone in INT8."""
    reason: str | None = None
    """Why nothing was measured, where nothing was."""

    def share_percent(self, name: str) -> float | None:
        """Return the share of one product in the sum over all; None if unknown."""
        total = sum(self.alone.values())
        return 100.0 * self.alone[name] / total if name in self.alone and total > 0 else None


class Switches:
    """Runs a model with any set of its INT8 products switched."""

    def __init__(self, probes: Probes, names: Sequence[str], batches: Batches) -> None:
        self._probes = probes
        self._names = names
        self._batches = batches

    def errors(self, settings: Iterable[Sequence[str]]) -> list[float]:
        """Return squared output error over squared output with each set of names switched."""
        feeds = [dict(feed) for feed in self._batches()]
        passes: list[Feeds] = []
        for switched in settings:
            gates = np.asarray([name in switched for name in self._names])
            passes += [{**feed, _GATES: gates} for feed in feeds]
        totals: dict[str, float] = {}
        found: list[float] = []
        for number, (_, results) in enumerate(run(self._probes, lambda: passes), start=1):
            for name, value in results.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            if number % len(feeds) == 0:
                found.append(_relative_error(totals))
                totals = {}
        return found

    def output_db(self, switched: Sequence[str]) -> float:
        """Return the SQNR of the output with these names switched."""
        return decibels(1.0, self.errors([switched])[0])


def measure_noise(
    switches: Switches,
    names: Sequence[str],
    budget_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Noise:
    """Return the error with each product alone in INT8, or why that takes too long.

    Args:
        switches: of `fp32_with_switches`.
        names: the INT8 products.
        budget_seconds: the first product's run tells whether all fit.
        clock: seconds.
    """
    start = clock()
    switches.errors([names[:1]])
    needed = (clock() - start) * len(names)
    if needed > budget_seconds:
        reason = (
            f"{len(names)} runs would take about {needed:.0f} s, the budget is {budget_seconds:g} s"
        )
        return Noise({}, reason)
    return Noise(dict(zip(names, switches.errors([name] for name in names), strict=True)))


def fp32_with_switches(pair: Pair, maps: Maps, batches: Batches) -> Switches:
    """Return the FP32 model in which each product can be switched to the artefact's.

    Args:
        pair: both graphs; changed.
        maps: of the same two graphs.
        batches: a pass over the images; all of them are held at once.
    """
    # The output to compare with must not pass through switches: a copy is made first.
    clean = [clone_segment(pair.model.graph, out, _own_inputs(pair)) for out, _ in pair.outputs]
    probes = Probes(pair.model)
    sites, gates = _gates(pair, probes)
    outputs = [reference for reference, _ in pair.outputs]
    for site, gate in zip(sites, gates, strict=True):
        made = int8_output(probes, site, maps, folded_input(probes, site, maps))
        _switch(probes, gate, (site.reference_output, made), outputs)
    _publish(probes, zip(clean, outputs, strict=True))
    return Switches(probes, [site.name for site in sites], batches)


def artefact_with_switches(pair: Pair, maps: Maps, batches: Batches) -> Switches:
    """Return the artefact in which each INT8 product can be switched to the FP32 layer; as above.

    The layer's input is brought back to the FP32 model's coordinates, its result into the
    artefact's.
    """
    probes = Probes(pair.model)
    sites, gates = _gates(pair, probes)
    outputs = [output for _, output in pair.outputs]
    for site, gate in zip(sites, gates, strict=True):
        _switch(probes, gate, (site.output, _in_float(probes, site, maps)), outputs)
    _publish(probes, zip([reference for reference, _ in pair.outputs], outputs, strict=True))
    return Switches(probes, [site.name for site in sites], batches)


def _own_inputs(pair: Pair) -> dict[ir.Value, ir.Value]:
    """Return each input of the graph mapped to a copy, so that all behind it is copied."""
    copies: dict[ir.Value, ir.Value] = {}
    for value in list(pair.model.graph.inputs):
        copy = ir.node("Identity", [value])
        pair.model.graph.append(copy)
        copies[value] = copy.outputs[0]
    return copies


def _gates(pair: Pair, probes: Probes) -> tuple[list[SitePair], list[ir.Value]]:
    """Return the INT8 products and a bool scalar for each, read from a new graph input."""
    sites = [site for site in pair.sites if site.quantize is not None]
    gates = ir.Value(
        name=_GATES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(sites)])
    )
    pair.model.graph.inputs.append(gates)
    numbers = range(len(sites))
    return sites, [probes.node("Gather", gates, probes.constant(np.asarray(n))) for n in numbers]


def _switch(
    probes: Probes, gate: ir.Value, choice: tuple[ir.Value, ir.Value], outputs: list[ir.Value]
) -> None:
    """Let every reader of the first value read the second where the gate is set."""
    usual, other = choice
    behind = _behind(other)
    users = [(node, index) for node, index in readers(usual) if node not in behind]
    switch = probes.node("Where", gate, other, usual)
    for node, index in users:
        node.replace_input_with(index, switch)
    outputs[:] = [switch if value is usual else value for value in outputs]


def _behind(value: ir.Value) -> set[ir.Node]:
    """Return the nodes that `value` is computed from."""
    found: set[ir.Node] = set()
    stack = [value]
    while stack:
        node = stack.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            stack.extend(v for v in node.inputs if v is not None)
    return found


def _in_float(probes: Probes, site: SitePair, maps: Maps) -> ir.Value:
    """Return the site's output in the artefact's coordinates, by the FP32 layer."""
    reference = site.reference
    into = channel_shape(reference.channel_axis, reference.activation_rank)
    given = probes.undo(site.input, maps.inputs.get(site.name), into)
    replaced = {reference.activation: given}
    result = clone_segment(probes.model.graph, site.reference_output, replaced)
    return probes.apply(result, maps.outputs.get(site.name), output_shape(site))


def _publish(probes: Probes, outputs: Iterable[tuple[ir.Value, ir.Value]]) -> None:
    for number, (reference, value) in enumerate(outputs):
        probes.energy(probes.node("Identity", reference), f"{number}/signal")
        probes.energy(probes.node("Sub", value, reference), f"{number}/error")


def _relative_error(totals: Mapping[str, float]) -> float:
    """Return the mean over outputs of squared error over squared signal."""
    shares = [
        error / max(totals[name.removesuffix("/error") + "/signal"], 1e-300)
        for name, error in totals.items()
        if name.endswith("/error")
    ]
    return float(np.mean(shares))
