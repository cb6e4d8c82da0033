"""Where an artefact's time goes: its engine's own counters, and what more INT8 could remove.

Counters slow an engine down and do not see what runs between layers, so shares are given; the
latency is `profile`'s matter.
"""

from collections.abc import Sequence

from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.device import read_device_report
from vitdeploy.diagnosis.fusing import chosen_candidate
from vitdeploy.diagnosis.schema import LayerTimeRow, TimeByLayer
from vitdeploy.runner import Feeds
from vitdeploy.targets import LayerTime, load_target

MOST_LAYERS = 20


def times_by_layer(bundle: Bundle, part: str, feeds: Feeds) -> tuple[TimeByLayer, ...]:
    """Return the layer times of a part on every target that runs here, or ran on its device.

    Raises:
        DataError: the report of a build on the device is damaged.
    """
    found = []
    for artifact in bundle.artifacts(part=part):
        target = load_target(artifact.target)
        if target.IS_PACKAGED:
            found.append(_time_on_device(bundle, artifact))
        elif target.untimed_reason() is None:
            found.append(time_by_layer(artifact, feeds))
    return tuple(time for time in found if time is not None and time.layers)


def time_by_layer(artifact: Artifact, feeds: Feeds) -> TimeByLayer:
    """Return the slowest layers of one artefact, and the share of its products in float."""
    layers = load_target(artifact.target).layer_times(artifact, feeds)
    return _time_of(artifact.target, len(next(iter(feeds.values()))), layers)


def _time_on_device(bundle: Bundle, artifact: Artifact) -> TimeByLayer | None:
    """Return what a build on the device timed; None where it timed nothing."""
    report = read_device_report(bundle.path)
    kept = None if report is None else chosen_candidate(report, artifact.part)
    if report is None or kept is None:
        return None
    layers = [
        LayerTime(
            name=row["name"],
            kind=row["kind"] or "unknown",
            milliseconds=row["mean_ms"],
            is_product=bool(row.get("is_product")),
            is_int8=any(kind.lower().startswith("int8") for kind in row["input_types"][:1]),
        )
        for row in kept.get("layers", ())
        if row["mean_ms"] is not None
    ]
    first = artifact.inputs[0].shape[0]
    batch = first if isinstance(first, int) else report["options"]["sizes"].get(first, 1)
    return _time_of(artifact.target, batch, layers)


def _time_of(target: str, batch: int, layers: Sequence[LayerTime]) -> TimeByLayer:
    total = sum(layer.milliseconds for layer in layers)
    slowest = sorted(layers, key=lambda layer: -layer.milliseconds)[:MOST_LAYERS]
    return TimeByLayer(
        target=target,
        batch=batch,
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
