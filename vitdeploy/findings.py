"""What a run found out, as the stages hand it on; how it is written down is `documents`' matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vitdeploy.activations import ActivationRecord
from vitdeploy.bundle import Artifact
from vitdeploy.compress.int4 import Int4Result
from vitdeploy.compress.int8 import Int8Result
from vitdeploy.measure import StageRecord, Timing
from vitdeploy.onnx_export import Parity
from vitdeploy.report import BlockNoise, FidelityRow, OutlierRow, WorstImage

REFERENCE = "reference"
"""Name of the FP32 ONNX among the timed subjects and the sizes."""


@dataclass(frozen=True)
class Compressed:
    """An artefact, and how it was quantised where it was."""

    artifact: Artifact
    quantized: Int8Result | None = None
    int4: Int4Result | None = None
    activations: ActivationRecord | None = None
    """What products with INT4 weights compute on, where there are any."""
    restored: tuple[str, ...] = ()
    """Products that went back to float because the gate on fidelity was missed, noisiest first."""


@dataclass(frozen=True)
class Measured:
    """Latencies of one target and part."""

    target: str
    part: str
    engine: str
    threads: int
    precision: str
    timing: Timing


@dataclass(frozen=True)
class Findings:
    """Everything a run found out."""

    compressed: Sequence[Compressed]
    reference_bytes: int
    fidelity: Sequence[FidelityRow]
    parity: Sequence[Parity]
    latency: Sequence[Measured]
    stages: Sequence[StageRecord]
    selection: Sequence[str] = ()
    """What was timed and kept, for people."""
    untimed: Mapping[str, str] = field(default_factory=dict)
    """By target that cannot be timed on this machine: why."""
    worst_images: Sequence[WorstImage] = ()
    sensitivity: Sequence[BlockNoise] = ()
    outliers: Sequence[OutlierRow] = ()
