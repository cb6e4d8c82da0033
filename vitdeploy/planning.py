"""What an export of a model will need, from shapes alone: files, memory, time.

For giants, whose export should not begin where it cannot end. Nothing is loaded or exported; the
one thing measured is how fast this machine multiplies matrices.
"""

import dataclasses
import math
import time
from dataclasses import dataclass

import numpy as np
import psutil

from vitdeploy.errors import UnsupportedError
from vitdeploy.graph.save import PROTOBUF_LIMIT_BYTES
from vitdeploy.models.spec import LoadOptions

SHARD_BYTES = 2**31
"""What one file, buffer or tensor may hold where sizes are signed 32-bit numbers."""
_WEIGHT_BITS = {"fp32": 32.0, "fp16": 16.0, "int8": 8.0, "w4a16": 4.25}
"""By precision; INT4 has one FP16 scale for 64 weights. Float leftovers are small beside these."""
_PROGRAM_BYTES = 0.93e9
_SMALL_COPIES, _LARGE_COPIES = 5.0, 3.0
"""How often an export holds the FP32 weights at once, beside the program itself. Below protobuf's
limit 5 times, fitted to the peaks of vit-small and vit-base (1.44 and 2.80 GB, in `stages` of
their reports): the graph is written out twice while it is simplified. Above it the graph is never
written out: torch's weights, the session's, and those that it packs for its kernels."""
_PROBE_ROWS, _PROBE_SECONDS = 768, 0.25


@dataclass(frozen=True)
class FileNeed:
    """The graph's weights at one precision."""

    precision: str
    weight_bytes: int
    is_external: bool
    """Whether they lie beside the graph, since one protobuf cannot hold them."""
    shards: int
    """Files of at most 2 GiB, for engines and file systems that take no larger one."""


@dataclass(frozen=True)
class Estimate:
    """What an export needs, and what there is."""

    model: str
    image_size: int
    parameters: int
    gmacs: float
    tokens: int | None
    attention_percent: float
    files: tuple[FileNeed, ...]
    largest_tensor_bytes: int
    """Of one FP32 weight, which no shard divides."""
    export_bytes: int
    """Most memory at once: weights as often as they are held, activations of two images."""
    memory_bytes: int
    """What the machine has."""
    gmacs_per_second: float
    """What FP32 products reach on this machine with the threads numpy uses."""
    image_seconds: float
    """One image in FP32 at that rate, the least that is possible."""
    images: int
    run_seconds: float
    """All images through the reference and through one artefact."""

    @property
    def fits(self) -> bool:
        """Return whether the export fits into the memory."""
        return self.export_bytes <= self.memory_bytes


def estimate(options: LoadOptions, images: int, memory_gb: float | None = None) -> Estimate:
    """Return what an export of the model that `options` name needs.

    Args:
        options: the model; its weights are not read.
        images: how many calibration and evaluation run.
        memory_gb: 10^9 bytes of the machine meant; what is free on this one where None.

    Raises:
        ModelError: no such model, or not at this size.
        UsageError, UnsupportedError: see `models.scaling.scaling_of`.
    """
    from vitdeploy.models import load
    from vitdeploy.models.scaling import cost_of, require_structure

    require_structure(options)
    loaded = load(dataclasses.replace(options, weightless=True))
    cost = cost_of(loaded)
    rate = _gmacs_per_second()
    memory = psutil.virtual_memory().available if memory_gb is None else int(memory_gb * 1e9)
    image_seconds = cost.gmacs / rate
    return Estimate(
        model=loaded.spec.name,
        image_size=cost.image_size,
        parameters=cost.weight_bytes // 4,
        gmacs=cost.gmacs,
        tokens=cost.tokens,
        attention_percent=cost.attention_percent,
        files=file_needs(cost.weight_bytes),
        largest_tensor_bytes=cost.largest_tensor_bytes,
        export_bytes=export_bytes(cost.weight_bytes, cost.activation_bytes),
        memory_bytes=memory,
        gmacs_per_second=rate,
        image_seconds=image_seconds,
        images=images,
        run_seconds=2 * images * image_seconds,
    )


def file_needs(weight_bytes: int) -> tuple[FileNeed, ...]:
    """Return by precision how large the weights are and what has to hold them.

    Args:
        weight_bytes: in FP32.
    """
    needs = []
    for precision, bits in _WEIGHT_BITS.items():
        size = round(weight_bytes * bits / 32)
        external = size > PROTOBUF_LIMIT_BYTES
        needs.append(FileNeed(precision, size, external, max(1, math.ceil(size / SHARD_BYTES))))
    return tuple(needs)


def export_bytes(weight_bytes: int, activation_bytes: int) -> int:
    """Return the memory that an export holds at most.

    Args:
        weight_bytes: in FP32.
        activation_bytes: of one image.
    """
    copies = _SMALL_COPIES if weight_bytes <= PROTOBUF_LIMIT_BYTES else _LARGE_COPIES
    return round(_PROGRAM_BYTES + copies * weight_bytes + 2 * activation_bytes)


def require_memory(found: Estimate) -> None:
    """Raise where the export would not fit.

    Raises:
        UnsupportedError: tells how much is missing and what to do.
    """
    if found.fits:
        return
    raise UnsupportedError(
        f"an export of {found.model} at {found.image_size} pixels needs about "
        f"{found.export_bytes / 1e9:.1f} GB of memory and {found.memory_bytes / 1e9:.1f} GB are "
        "free. Export it on a machine that has that much (the bundle can then be copied), or "
        "choose a smaller model or --image-size."
    )


def _gmacs_per_second() -> float:
    """Return 10^9 FP32 multiply-accumulates a second of this machine's matrix products."""
    left = np.random.default_rng(0).normal(size=(_PROBE_ROWS, _PROBE_ROWS)).astype(np.float32)
    best, start = math.inf, time.perf_counter()
    while time.perf_counter() - start < _PROBE_SECONDS:
        before = time.perf_counter()
        _ = left @ left
        best = min(best, time.perf_counter() - before)
    return _PROBE_ROWS**3 / best / 1e9
