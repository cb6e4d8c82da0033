"""Where an artefact's time goes: its engine's own counters, and what more INT8 could remove.

Counters slow an engine down and do not see what runs between layers, so shares are given; the
latency is `profile`'s matter.
"""

from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.diagnosis.schema import LayerTimeRow, TimeByLayer
from vitdeploy.runner import Feeds
from vitdeploy.targets import LayerTime, load_target

MOST_LAYERS = 20


def times_by_layer(bundle: Bundle, part: str, feeds: Feeds) -> tuple[TimeByLayer, ...]:
    """Return the layer times of a part on every target that runs on this machine."""
    return tuple(
        time_by_layer(artifact, feeds)
        for artifact in bundle.artifacts(part=part)
        if load_target(artifact.target).untimed_reason() is None
    )


def time_by_layer(artifact: Artifact, feeds: Feeds) -> TimeByLayer:
    """Return the slowest layers of one artefact, and the share of its products in float."""
    layers = load_target(artifact.target).layer_times(artifact, feeds)
    total = sum(layer.milliseconds for layer in layers)
    slowest = sorted(layers, key=lambda layer: -layer.milliseconds)[:MOST_LAYERS]
    return TimeByLayer(
        target=artifact.target,
        batch=len(next(iter(feeds.values()))),
        total_ms=total,
        float_products_percent=_percent(
            [x for x in layers if x.is_product and not x.is_int8], total
        ),
        int8_products_percent=_percent([x for x in layers if x.is_product and x.is_int8], total),
        layers=tuple(
            LayerTimeRow(
                name=layer.name,
                kind=layer.kind,
                milliseconds=layer.milliseconds,
                percent=_percent([layer], total),
                is_int8=layer.is_int8,
            )
            for layer in slowest
        ),
    )


def _percent(layers: list[LayerTime], total: float) -> float:
    return 100.0 * sum(layer.milliseconds for layer in layers) / total if total else 0.0
