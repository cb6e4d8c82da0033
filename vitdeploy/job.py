"""What the stages of a run hand on to each other, and nothing that they do.

The order of the stages is `pipeline`'s, the stages themselves are `comparing`'s and `stages`'.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vitdeploy.bundle import BundleWriter
from vitdeploy.compress.folding import Memory
from vitdeploy.compress.int4 import Int4Result
from vitdeploy.compress.int8 import Int8Result
from vitdeploy.image_sets import Chosen
from vitdeploy.joined import GOLDEN_PICTURES, JoinedReference
from vitdeploy.measure import StageClock
from vitdeploy.models.spec import ExportPart
from vitdeploy.progress import Progress
from vitdeploy.recipe import AttentionForm, Int4Choices, Int8Choices, Recipe
from vitdeploy.report import FidelityRow, WorstImage
from vitdeploy.runner import Outputs
from vitdeploy.targets import Settings

SLOW_IMAGE_SECONDS = 2.0
"""What makes a model slow: seconds that an image takes the reference. INT8 is then not timed beside
other short types, whose building and timing takes minutes, and engines are timed one by one."""
GOLDEN_IMAGES = 4
"""Kept in a bundle of a model that reads pictures alone."""


@dataclass(frozen=True)
class Reference:
    """What the model as loaded gives for the evaluation images."""

    outputs: dict[str, Outputs]
    """By part that reads pictures."""
    joined: JoinedReference | None = None
    """Of the part that reads prompts, where there is one."""
    image_seconds: float = 0.0
    """What one image took."""

    @property
    def is_slow(self) -> bool:
        """Whether few runs can be afforded, and not two engines in memory."""
        return self.image_seconds > SLOW_IMAGE_SECONDS

    @property
    def golden_pictures(self) -> int:
        """How many pictures a bundle keeps."""
        return GOLDEN_IMAGES if self.joined is None else GOLDEN_PICTURES


@dataclass(frozen=True)
class Plan:
    """How one target's artefacts are to be made."""

    precision: str
    folder: str
    """Where in the bundle; the target's name, or another while candidates are compared."""
    settings: Settings = field(default_factory=dict)
    """Session settings on top of the target's own."""
    pinned: Int8Choices | None = None
    """INT8 as chosen before; searched for where None."""
    pinned_int4: Int4Choices | None = None
    """The same for INT4 weights."""
    quantized: Mapping[str, Int8Result] = field(default_factory=dict)
    """By part: in INT8 already."""
    attention: AttentionForm = "as-exported"


@dataclass(frozen=True)
class Judged:
    """How close one target's artefacts are to the reference, on their own engine."""

    rows: list[FidelityRow]
    golden: dict[str, Outputs]
    """By part: the outputs on the first evaluation images."""
    worst: list[WorstImage] = field(default_factory=list)
    """The images on which they differ most."""


@dataclass(frozen=True)
class ExportedPart:
    """A part's FP32 graph and where it lies while the run lasts."""

    part: ExportPart
    model: ir.Model
    path: Path
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Work:
    """What every stage of a run needs."""

    recipe: Recipe
    clock: StageClock
    progress: Progress

    def stage(self, name: str) -> Any:
        """Begin a stage: told to the user and timed."""
        self.progress.stage(name)
        return self.clock.stage(name)


@dataclass(frozen=True)
class Job:
    """What building and comparing an artefact needs."""

    work: Work
    exported: list[ExportedPart]
    images: Chosen
    reference: Reference
    writer: BundleWriter
    memories: dict[str, Memory] = field(default_factory=dict)
    """By part: what its FP32 graph did on the calibration images, for all targets."""
    int4: dict[tuple[str, str], Int4Result] = field(default_factory=dict)
    """By part and pinned choices, once it was quantised: targets get the same INT4 weights."""


def note_all(work: Work, notes: tuple[str, ...]) -> None:
    """Tell the user every note."""
    for note in notes:
        work.progress.note(note)


def batch_of(recipe: Recipe, images: Chosen) -> int:
    """Return the batch of calibration and evaluation: fixed, or what fits a small machine."""
    if isinstance(recipe.export.batch, int):
        return recipe.export.batch
    height, width = images.preprocess.size
    return 8 if height * width <= 256 * 256 else 1
