"""Which nodes compute beyond FP16's range, measured on images, streamed.

One pass over the images with a reduction behind every float value; only their maxima leave the
engine. What follows for the graph is `graph.half`'s.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.half import FP16_MAX
from vitdeploy.graph.observers import bring_observers_forward_
from vitdeploy.runner import Feeds
from vitdeploy.targets.onnx import runner_from_model

MARGIN = 8.0
"""How many times larger than on the images seen a value may get on others."""
PROBED_IMAGES = 32


@dataclass(frozen=True)
class LargeValue:
    """A value that FP16 does not hold with the margin."""

    name: str
    largest: float
    """|x| over the images."""


@dataclass(frozen=True)
class OverflowProbe:
    """What one pass showed."""

    images: int
    """0 where nothing was measured."""
    large: tuple[LargeValue, ...] = ()
    """Largest first."""
    float32_nodes: frozenset[str] = frozenset()
    """Nodes that make or read a large value."""


def probe_overflow(
    model: ir.Model, images: Callable[[], Iterable[Feeds]] | None, margin: float = MARGIN
) -> OverflowProbe:
    """Return which nodes of an FP32 graph need FP32.

    Args:
        model: FP32 graph, with or without Q/DQ, named nodes; not changed.
        images: a pass over images, of which the first 32 are read; None measures nothing.
        margin: a value counts as large above FP16's largest number over this.
    """
    if images is None:
        return OverflowProbe(0)
    largest, count = _largest_values(model, images)
    limit = FP16_MAX / margin
    # A NaN is no reason for FP32: it is the model's own, and the comparison with FP32 says so.
    names = [name for name, size in largest.items() if size > limit]
    large = tuple(LargeValue(n, largest[n]) for n in sorted(names, key=lambda n: -largest[n]))
    return OverflowProbe(count, large, _touching(model, set(names)))


def _touching(model: ir.Model, names: set[str]) -> frozenset[str]:
    return frozenset(
        str(node.name)
        for node in model.graph
        if any(v is not None and v.name in names for v in (*node.inputs, *node.outputs))
    )


def _largest_values(
    model: ir.Model, images: Callable[[], Iterable[Feeds]]
) -> tuple[dict[str, float], int]:
    """Return |x| at most, by value name, and how many images were read."""
    observed = model.clone()
    published = _publish_extremes_(observed)
    largest = dict.fromkeys(published, 0.0)
    count = 0
    bring_observers_forward_(observed.graph, len(model.graph))
    with runner_from_model(observed, in_listed_order=True) as runner:
        for feeds in images():
            if count >= PROBED_IMAGES:
                break
            count += len(next(iter(feeds.values())))
            results = runner(feeds)
            for name, outputs in published.items():
                largest[name] = max(largest[name], *(abs(float(results[o])) for o in outputs))
    return largest, count


def _publish_extremes_(model: ir.Model) -> dict[str, list[str]]:
    """Put both extremes of every float value among the outputs, which they replace.

    The largest |x| as one output would need a copy of each value.
    """
    values = [value for node in model.graph for value in node.outputs if _varies(node, value)]
    model.graph.outputs.clear()
    published: dict[str, list[str]] = {}
    for number, value in enumerate(values):
        for operator in ("ReduceMin", "ReduceMax"):
            extreme = ir.node(operator, [value], attributes={"keepdims": 0})
            model.graph.append(extreme)
            output = extreme.outputs[0]
            output.name = f"vitdeploy_{operator}_{number}"
            output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            model.graph.outputs.append(output)
            published.setdefault(str(value.name), []).append(output.name)
    return published


def _varies(node: ir.Node, value: ir.Value) -> bool:
    """Return whether a float value depends on the input."""
    return value.dtype == ir.DataType.FLOAT and any(
        read is not None and read.const_value is None for read in node.inputs
    )
