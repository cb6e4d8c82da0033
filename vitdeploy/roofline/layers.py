"""What one layer of an engine's graph computes and moves, whichever engine counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

COUNTED_RUNS = 10
"""Behind each layer's time, after a first one, which allocates."""

TYPE_BYTES = {"int4": 0.5, "int8": 1.0, "fp16": 2.0, "bf16": 2.0, "fp32": 4.0, "int64": 8.0}
"""By the names of types that results use."""


@dataclass(frozen=True)
class LayerCount:
    """One layer of an engine's own graph, after its fusions."""

    name: str
    kind: str
    """The engine's word for the operator."""
    type: str
    """What it multiplies in, or else what it writes: a key of `TYPE_BYTES`, or `other`."""
    milliseconds: float
    """The fastest of several runs; counting makes an engine slower."""
    is_product: bool
    macs: int | None
    """Multiply-accumulates of a run; None where its shapes do not tell."""
    bytes: int | None
    """Inputs, weights and outputs."""
    weight_bytes: int
    """Of constants that it multiplies with, in the type it multiplies in."""


@dataclass(frozen=True)
class Tensor:
    """Shape and type of what a layer reads or writes."""

    shape: tuple[int, ...]
    type: str

    @property
    def bytes(self) -> int:
        """Return the size in memory; types without a known size count as four bytes."""
        return int(prod(self.shape) * TYPE_BYTES.get(self.type, 4.0))


def moved_bytes(tensors: Sequence[Tensor]) -> int:
    """Return the size of all tensors together."""
    return sum(tensor.bytes for tensor in tensors)
