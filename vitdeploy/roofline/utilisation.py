"""Layers against ceilings: the least time the machine could take, of the time that was taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitdeploy.report.profile import ArtefactWork, Ceilings, LayerWork
from vitdeploy.roofline.layers import LayerCount
from vitdeploy.runner import Feeds

MOST_LAYERS = 40
_MOST_SHARE = 105.0
"""Per cent: what is above the ceiling by less is the counters' rounding."""
_LEAST_MS = 0.05


@dataclass(frozen=True)
class Ran:
    """What was timed of one part of an artefact."""

    name: str
    part: str
    precision: str
    batch: int
    feeds: Feeds
    p50_ms: float


def work_of(ran: Ran, layers: Sequence[LayerCount], ceilings: Ceilings) -> ArtefactWork:
    """Return how far a part is from the ceilings, as a whole and by layer.

    The whole must at least read its weights and inputs once; what passes between layers may stay
    in caches and is not counted there.

    Args:
        ran: the part, and its latency without counters.
        layers: of the same engine at the same batch size.
        ceilings: of this machine with as many threads.
    """
    macs: dict[str, int] = {}
    for layer in layers:
        if layer.macs:
            kind = _ceiling_type(layer.type, ceilings)
            macs[kind] = macs.get(kind, 0) + layer.macs
    total = sum(layer.milliseconds for layer in layers)
    moved = sum(layer.weight_bytes for layer in layers)
    moved += sum(int(np.asarray(value).nbytes) for value in ran.feeds.values())
    compute = sum(_compute_ms(count, kind, ceilings) for kind, count in macs.items())
    memory = _memory_ms(moved, ceilings)
    products = sum(layer.milliseconds for layer in layers if layer.is_product)
    slowest = sorted(layers, key=lambda layer: -layer.milliseconds)[:MOST_LAYERS]
    return ArtefactWork(
        name=ran.name,
        part=ran.part,
        precision=ran.precision,
        batch=ran.batch,
        macs=macs,
        bytes=moved,
        p50_ms=ran.p50_ms,
        limit_ms=max(compute, memory),
        compute_percent=100.0 * compute / ran.p50_ms,
        bandwidth_percent=100.0 * memory / ran.p50_ms,
        utilisation_percent=100.0 * max(compute, memory) / ran.p50_ms,
        products_percent=100.0 * products / total if total else 0.0,
        layers=tuple(_layer_work(layer, total, ceilings) for layer in slowest),
    )


def beaten(works: Sequence[ArtefactWork]) -> list[str]:
    """Return the parts that were faster than the ceilings allow, which are then too low."""
    return [f"{work.name}/{work.part}" for work in works if _fastest_share(work) > _MOST_SHARE]


def _fastest_share(work: ArtefactWork) -> float:
    """Return the largest utilisation: of the whole, or of a layer long enough to be timed."""
    layers = [
        layer.utilisation_percent or 0.0 for layer in work.layers if layer.milliseconds >= _LEAST_MS
    ]
    return max([work.utilisation_percent, *layers])


def _layer_work(layer: LayerCount, total: float, ceilings: Ceilings) -> LayerWork:
    kind = _ceiling_type(layer.type, ceilings)
    compute = _compute_ms(layer.macs or 0, kind, ceilings)
    memory = _memory_ms(layer.bytes or 0, ceilings)
    share = 100.0 * compute / layer.milliseconds if layer.macs and layer.milliseconds else None
    no_macs = "its shapes do not tell" if layer.is_product else "it multiplies no matrices"
    return LayerWork(
        name=layer.name,
        kind=layer.kind,
        type=layer.type,
        milliseconds=layer.milliseconds,
        share_percent=100.0 * layer.milliseconds / total if total else 0.0,
        macs=layer.macs,
        macs_reason=None if layer.macs is not None else no_macs,
        bytes=layer.bytes,
        bytes_reason=None if layer.bytes is not None else "its shapes do not tell",
        utilisation_percent=share,
        utilisation_percent_reason=None if share is not None else no_macs,
        is_memory_bound=memory > compute,
    )


def _ceiling_type(kind: str, ceilings: Ceilings) -> str:
    """Return the type whose ceiling holds: a type the machine cannot multiply in runs in fp32."""
    tops: Mapping[str, float | None] = ceilings.tops
    return kind if tops.get(kind) is not None else "fp32"


def _compute_ms(macs: int, kind: str, ceilings: Ceilings) -> float:
    tops = ceilings.tops[kind]
    assert tops is not None
    return 2.0 * macs / (tops * 1e12) * 1e3


def _memory_ms(count: int, ceilings: Ceilings) -> float:
    return count / (ceilings.bandwidth_gbs * 1e9) * 1e3
