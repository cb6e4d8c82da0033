"""How large activations get: channels of LayerNorms against each other, and FP16's limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.diagnosis.measuring import Batches, Probes, run
from vitdeploy.diagnosis.pairing import PREFIX, NormPair, Pair
from vitdeploy.diagnosis.schema import NormRow, OverflowRow
from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.surgery import int_attribute

FP16_MAX = 65504.0
"""The largest finite number of FP16."""
_SHOWN_FROM = FP16_MAX / 4


@dataclass(frozen=True)
class Extremes:
    """What one pass showed."""

    norms: tuple[NormRow, ...]
    fp16: tuple[OverflowRow, ...]
    """Largest first."""


def measure_extremes(pair: Pair, batches: Batches) -> Extremes:
    """Return outlier ratios of every LayerNorm and the tensors FP16 may not hold.

    Args:
        pair: both graphs; gets reductions.
        batches: a pass over the images.
    """
    ranks = {name: len(shape) for name, shape in concrete_shapes(pair.model).items()}
    probes = Probes(pair.model)
    tensors = _float_values(pair.model)
    for norm in pair.norms:
        rank = ranks.get(str(norm.reference.outputs[0].name))
        if rank is None:
            continue
        _add_channels(probes, norm.reference.outputs[0], rank, f"norm/{norm.name}/before")
        if norm.output is not None:
            _add_channels(probes, norm.output, rank, f"norm/{norm.name}/after")
        _add_squares(probes, norm, rank)
    for name, value in tensors.items():
        size = probes.node("ReduceMax", probes.node("Abs", value), keepdims=0)
        probes.publish(size, f"value/{name}")
    largest: dict[str, np.ndarray] = {}
    for _, results in run(probes, batches):
        for name, value in results.items():
            key = name.removeprefix("probe//")
            largest[key] = np.maximum(largest[key], value) if key in largest else value
    return Extremes(_norm_rows(pair.norms, largest), _overflow_rows(largest))


def outlier_ratio(magnitudes: np.ndarray) -> float:
    """Return the largest over the median of (C,) magnitudes; 0 where all are 0."""
    median = float(np.median(magnitudes))
    largest = float(magnitudes.max())
    return largest / median if median > 0 else (float("inf") if largest > 0 else 0.0)


def _float_values(model: ir.Model) -> dict[str, ir.Value]:
    """Return the float values that nodes of the FP32 graph make, by name."""
    return {
        str(value.name): value
        for node in model.graph
        for value in node.outputs
        if not str(value.name).startswith(PREFIX) and value.dtype == ir.DataType.FLOAT
    }


def _add_channels(probes: Probes, value: ir.Value, rank: int, name: str) -> None:
    axes = probes.constant(np.arange(rank - 1, dtype=np.int64))
    largest = probes.node("ReduceMax", probes.node("Abs", value), axes, keepdims=0)
    probes.publish(largest, name)


def _add_squares(probes: Probes, norm: NormPair, rank: int) -> None:
    """Add the largest sum of squared deviations of a row, which a LayerNorm computes inside."""
    first = int_attribute(norm.reference, "axis", -1) % rank
    axes = probes.constant(np.arange(first, rank, dtype=np.int64))
    value = norm.reference.inputs[0]
    assert value is not None
    centred = probes.node("Sub", value, probes.node("ReduceMean", value, axes, keepdims=1))
    rows = probes.node("ReduceSumSquare", centred, axes, keepdims=0)
    probes.publish(probes.node("ReduceMax", rows, keepdims=0), f"squares/{norm.name}")


def _norm_rows(norms: Sequence[NormPair], largest: Mapping[str, np.ndarray]) -> tuple[NormRow, ...]:
    rows = []
    for norm in norms:
        before = largest.get(f"norm/{norm.name}/before")
        after = largest.get(f"norm/{norm.name}/after")
        if before is None:
            continue
        ratio = None if after is None else _finite(outlier_ratio(after))
        reason = "the artefact has no node of this name" if after is None else None
        rows.append(
            NormRow(
                name=norm.name,
                before=_finite(outlier_ratio(before)),
                after=ratio,
                after_reason=reason,
            )
        )
    return tuple(rows)


def _finite(ratio: float) -> float:
    """Return the ratio, and for a norm whose median channel is silent the largest float32."""
    return min(ratio, float(np.finfo(np.float32).max))


def _overflow_rows(largest: Mapping[str, np.ndarray]) -> tuple[OverflowRow, ...]:
    rows = []
    for key, value in largest.items():
        kind, _, name = key.partition("/")
        if kind in ("value", "squares") and float(value) >= _SHOWN_FROM:
            quantity = "value" if kind == "value" else "sum of squares"
            size = min(float(value), float(np.finfo(np.float32).max))
            rows.append(
                OverflowRow(name=name, quantity=quantity, max_abs=size, overflows=size > FP16_MAX)
            )
    return tuple(sorted(rows, key=lambda row: -row.max_abs))
