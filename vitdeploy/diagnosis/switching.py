"""What the model's output would gain where some products ran in float.

One graph with a switch per product: where a product is switched to float, its input is brought
back to the FP32 model's coordinates, goes through the FP32 layer, and the result is brought into
the artefact's coordinates. Which products to try is decided in `advice`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.diagnosis.measuring import (
    Batches,
    Maps,
    Probes,
    channel_shape,
    decibels,
    output_shape,
    run,
)
from vitdeploy.diagnosis.pairing import Pair, SitePair, clone_segment
from vitdeploy.graph.surgery import readers

_GATES = "diagnosis//gates"


@dataclass(frozen=True)
class Gains:
    """What was measured of a set of products."""

    error: float
    """Mean over outputs of squared error over squared signal, all in INT8."""
    without: dict[str, float]
    """By product: the same with that one in float."""
    reason: str | None = None
    """Why nothing was measured, where nothing was."""

    def share_percent(self, name: str) -> float | None:
        """Return the share of the error that goes with one product in float; None if unknown."""
        if name not in self.without or self.error <= 0.0:
            return None
        return 100.0 * (self.error - self.without[name]) / self.error


class Switches:
    """Runs the artefact with any set of its INT8 products in float."""

    def __init__(self, pair: Pair, maps: Maps, batches: Batches) -> None:
        self._names = [site.name for site in pair.sites if site.quantize is not None]
        self._probes = _with_switches(pair, maps)
        self._batches = batches

    def error(self, in_float: Sequence[str]) -> float:
        """Return squared output error over squared output with these products in float."""
        gates = np.asarray([name in in_float for name in self._names])
        return next(self._errors([gates]))

    def decibels(self, in_float: Sequence[str]) -> float:
        """Return the same as SQNR."""
        return decibels(1.0, self.error(in_float))

    def gains(self, budget_seconds: float, clock: Callable[[], float] = time.perf_counter) -> Gains:
        """Return the error with each product alone in float, or why that takes too long."""
        start = clock()
        error = self.error([])
        needed = (clock() - start) * len(self._names)
        if needed > budget_seconds:
            reason = (
                f"{len(self._names)} runs would take about {needed:.0f} s, "
                f"the budget is {budget_seconds:g} s"
            )
            return Gains(error, {}, reason)
        rows = np.eye(len(self._names), dtype=bool)
        return Gains(error, dict(zip(self._names, self._errors(list(rows)), strict=True)))

    def _errors(self, settings: Sequence[np.ndarray]) -> Iterator[float]:
        """Yield the error of each setting of the gates; the engine is opened once."""
        feeds = [dict(feed) for feed in self._batches()]
        passes = ({**feed, _GATES: gates} for gates in settings for feed in feeds)
        totals: dict[str, float] = {}
        for number, (_, results) in enumerate(run(self._probes, lambda: passes), start=1):
            for name, value in results.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            if number % len(feeds) == 0:
                signals = [v for n, v in totals.items() if n.endswith("/signal")]
                noises = [v for n, v in totals.items() if n.endswith("/error")]
                yield float(
                    np.mean([e / max(s, 1e-300) for e, s in zip(noises, signals, strict=True)])
                )
                totals = {}


def _with_switches(pair: Pair, maps: Maps) -> Probes:
    probes = Probes(pair.model)
    sites = [site for site in pair.sites if site.quantize is not None]
    gates = ir.Value(
        name=_GATES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(sites)])
    )
    pair.model.graph.inputs.append(gates)
    outputs = {id(value): value for _, value in pair.outputs}
    for number, site in enumerate(sites):
        users = readers(site.output)
        gate = probes.node("Gather", gates, probes.constant(np.asarray(number)))
        switch = probes.node("Where", gate, _in_float(probes, site, maps), site.output)
        for node, index in users:
            node.replace_input_with(index, switch)
        if id(site.output) in outputs:
            outputs[id(site.output)] = switch
    for number, (reference, value) in enumerate(pair.outputs):
        seen = outputs[id(value)]
        probes.energy(probes.node("Identity", reference), f"{number}/signal")
        probes.energy(probes.node("Sub", seen, reference), f"{number}/error")
    pair.model.graph.sort()
    return probes


def _in_float(probes: Probes, site: SitePair, maps: Maps) -> ir.Value:
    """Return the site's output in the artefact's coordinates, by the FP32 layer."""
    reference = site.reference
    into = channel_shape(reference.channel_axis, reference.activation_rank)
    given = probes.undo(site.input, maps.inputs.get(site.name), into)
    result = clone_segment(probes.model.graph, site.reference_output, {reference.activation: given})
    return probes.apply(result, maps.outputs.get(site.name), output_shape(site))
