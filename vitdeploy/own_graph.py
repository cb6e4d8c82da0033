"""Whether an artefact computes on its engine what its own graph says.

What quantising costs lies in the graph, and metrics and gates tell of it. What an engine makes of
the graph beyond that is a fault, whatever the gates allow: OpenVINO 2026.4 applied the scales of
some convolutions twice (see `graph.conv_bias`), and only a look at the cosine told.
"""

from dataclasses import dataclass, replace

from vitdeploy.bundle import Artifact
from vitdeploy.errors import ExportError
from vitdeploy.evaluation import collect_outputs
from vitdeploy.findings import Compressed
from vitdeploy.metrics import Comparison, sqnr_db
from vitdeploy.runner import Feeds, Outputs, Runner
from vitdeploy.targets import Settings, Target
from vitdeploy.targets.onnx import runner_from_model

IMAGES = 4
"""Looked at, the first of the evaluation set."""
LEAST_DB = {"fp32": 40.0, "bf16": 10.0, "fp16": 10.0, "w4a8": 10.0}
"""By precision: how close an engine must come to the graph. FP32 differs in the order of sums alone
(100 dB, less in ill-conditioned models); short floats have 8 or 11 bits, and how far their rounding
grows is the model's matter; what W4A8 adds is in no graph."""
LEAST_INT8_DB = 20.0
"""Of all others. Engines round the same 8 bits at other places (30 dB and more)."""
BELOW_OWN_DB = 6.0
"""A graph this noisy itself amplifies rounding: its engine may differ from it by four times that
noise, whatever the limits above."""


@dataclass(frozen=True)
class Seen:
    """What is known of the first evaluation images."""

    feeds: Feeds
    """Empty for a part that is never quantised, whose graph need not run."""
    reference: Outputs
    """Of the FP32 model that was exported."""
    engine: Outputs
    """Of the artefact."""
    batch: int | str
    """The size that graphs are fixed to, or `dynamic`."""
    threads: int | None = None
    """Of the engine; its own choice where None."""
    centred: bool = False
    """See `metrics.Comparison.centred`."""

    def outputs_of(self, runner: Runner) -> Outputs:
        """Return what a runner gives for the images."""
        return collect_outputs(runner, [self.feeds], self.batch)

    def sqnr(self, name: str, expected: Outputs, value: Outputs) -> float:
        """Return how close one output is to what is expected of it, in decibels."""
        is_centred = self.centred and len(expected[name]) > 1
        comparison = Comparison(expected[name], value[name], centred=is_centred)
        score = sqnr_db(comparison)
        assert score is not None  # only one centred image has none
        return score.value


def require_own_graph(target: Target, item: Compressed, seen: Seen, engine: str) -> None:
    """Refuse an artefact that its engine runs otherwise than its graph says.

    The graph is run by ONNX Runtime node by node, without a fusion. An artefact in float has the
    exported model for a graph, which parity has compared with torch before.

    Args:
        target: of the artefact.
        item: the artefact, with the graph it was built from where it was quantised.
        seen: images and outputs.
        engine: that ran it, for people.

    Raises:
        ExportError: an output differs by more than the engine's rounding does.
    """
    quantised = item.quantized or item.int4
    if quantised is None:
        graph = seen.reference
    else:
        with runner_from_model(quantised.model, in_listed_order=True) as runner:
            graph = seen.outputs_of(runner)
    found = _farthest(item, seen, graph, seen.engine)
    if found is None:
        return
    settings = target.float_settings(item.artifact)
    if quantised is not None and settings != item.artifact.settings:
        # bf16 between INT8 products is no fault: without it, is it the same function?
        own = _engine_outputs(target, item.artifact, settings, seen)
        found = _farthest(item, seen, graph, own)
        if found is None:
            return
    name, distance, allowed = found
    artifact = item.artifact
    instead = "another --target, --fp16 or --bf16" if quantised else "another --target"
    raise ExportError(
        f"{artifact.target}: {engine} does not compute '{artifact.part}' as its "
        f"{artifact.precision} graph says: output '{name}' differs by {distance:.1f} dB SQNR on "
        f"{len(graph[name])} image(s), at least {allowed:.1f} dB is asked. That is a fault of the "
        f"engine, not of the precision; use {instead}, and report the model."
    )


def _engine_outputs(target: Target, artifact: Artifact, settings: Settings, seen: Seen) -> Outputs:
    with target.open(replace(artifact, settings=settings), seen.threads) as runner:
        return seen.outputs_of(runner)


def _farthest(
    item: Compressed, seen: Seen, graph: Outputs, engine: Outputs
) -> tuple[str, float, float] | None:
    """Return the output that differs too much, by how much and what is allowed; None for none."""
    worst: tuple[str, float, float] | None = None
    for name, expected in graph.items():
        if name not in seen.reference:
            continue
        own = seen.sqnr(name, seen.reference, graph)
        allowed = min(_least_db(item), own - BELOW_OWN_DB)
        distance = seen.sqnr(name, {name: expected}, engine)
        if distance < allowed and (worst is None or distance < worst[1]):
            worst = name, distance, allowed
    return worst


def _least_db(item: Compressed) -> float:
    is_w4a8 = item.activations is not None and item.activations.type == "int8"
    precision = "w4a8" if is_w4a8 else item.artifact.precision
    return LEAST_DB.get(precision, LEAST_INT8_DB)
