"""What every family returns: the loaded model and its exportable parts.

No architecture lives here, only the types that keep it from leaking elsewhere.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import Preprocess
from vitdeploy.data.packaged import PackagedName
from vitdeploy.manifest import TrackingEntry
from vitdeploy.models.pruning_record import PruningRecord
from vitdeploy.recipe import PreprocessSection

Task = Literal["classification", "features", "segmentation"]
Outputs = str
"""Kinds of outputs, separated by commas; see `recipe.names.canonical_outputs`."""


@dataclass(frozen=True)
class LoadOptions:
    """What to load and how; the fields are the flags of `vitdeploy export`."""

    source: str
    """`MODEL`: an alias, `timm:NAME`, `hf:REPO`, a model folder or an `.onnx` file."""
    checkpoint: Path | None = None
    random_weights: bool = False
    image_size: int | None = None
    """Pixels of the square input; None is the model's own."""
    outputs: Outputs | None = None
    """None is `logits` where the model has a classifier, else `features`."""
    seed: int = 0
    """Of the random weights."""
    preprocess: PreprocessSection | None = None
    """Of an `.onnx` file; all other models bring their own."""
    batch: int | None = None
    """The fixed batch an `.onnx` file is wanted at; None is the file's own, or dynamic."""
    weightless: bool = False
    """Build the structure alone, on torch's meta device, which needs next to no memory and no
    weights: for figures that follow from shapes."""
    single_mask: bool = False
    """Of a model that segments by prompts: choose one mask a prompt, instead of returning all."""
    video: bool = False
    """Of SAM 2: also the parts that remember earlier frames."""


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a part; `shape` holds ints and, where dynamic, names."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model without its weights."""

    name: str
    """As the user typed it, for instance `dinov2-small`."""
    family: str
    """A key of `FAMILIES`, or `onnx`."""
    source: str
    """Where it came from: `timm:NAME`, `hf:REPO`, `folder:NAME` (no machine path), `onnx:NAME`."""
    task: Task
    preprocess: Preprocess
    label_names: tuple[str, ...] = ()
    weights: Literal["pretrained", "checkpoint", "random", "packaged", "unknown", "none"] = (
        "pretrained"
    )
    """`none` is a structure without values, which can be described and not run."""
    calibration_set: PackagedName = "photos"
    """The packaged image set that fits the task: `digits`, `photos` or `scenes`."""
    notes: tuple[str, ...] = ()
    """What the user should know, for instance of a resampled position embedding."""


@dataclass(frozen=True)
class ExportPart:
    """One module that becomes one ONNX file."""

    name: str
    """`model` where there is one part; file stem of the artefact."""
    module: Any
    """A `torch.nn.Module` in eval mode, FP32; takes and returns tensors in the order of
    `inputs` and `outputs` (one tensor, or a tuple of them). None where there is a `file`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    file: Path | None = None
    """The FP32 ONNX file that is the reference itself, for a model from elsewhere."""
    example: Callable[[int], dict[str, NDArray[np.float32]]] | None = None
    """Feeds to export and to compare with, for a part that reads more than pictures: larger along
    every dynamic axis for a larger number. An input that an earlier part returns under the same
    name is drawn at random there; in use it is that part's output."""


def class_output(task: str, outputs: Iterable[tuple[str, int]]) -> str | None:
    """Return the output that holds one value per class, or None.

    It is the one called `logits`, else (files from elsewhere keep their names) the only output
    of a classifier that has two axes.

    Args:
        task: of the model's spec or manifest.
        outputs: name and number of axes of each output.
    """
    ranks = dict(outputs)
    if "logits" in ranks:
        return "logits"
    flat = [name for name, rank in ranks.items() if rank == 2]
    return flat[0] if task == "classification" and len(flat) == 1 else None


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer, as the pruner and `inspect` need it."""

    path: str
    """Module path of the attention layer, for instance `blocks.0.attn`."""
    qkv: tuple[str, ...]
    """Paths of the packed projection, or of q, k and v."""
    proj: str
    num_heads: int
    head_dim: int
    tokens: int | None = None
    """Tokens one softmax row spans (window size squared for Swin), at the model's image size."""
    per_head: tuple[str, ...] = ()
    """Paths of parameters with one entry per head (Swin's bias tables, SwinV2's scales)."""


@dataclass(frozen=True)
class MlpSite:
    """One MLP whose hidden channels the pruner can remove."""

    path: str
    """Module path of the MLP, for instance `blocks.0.mlp`."""
    inputs: tuple[str, ...]
    """Paths of the layers that make the hidden channels: one; or gate and value of a GLU."""
    output: str
    width: int
    """Hidden channels that `output` reads."""
    is_packed: bool = False
    """Whether the one input makes gate and value of a GLU, one after the other."""


@dataclass(frozen=True)
class Rebuild:
    """What saving a model as a folder needs beside the module itself."""

    layout: Literal["timm", "transformers", "sam"]
    """Of the folder; `sam` is that of transformers for models whose parts are only its layers."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of `timm.create_model`, beyond the architecture's name."""
    pruning: PruningRecord = field(default_factory=PruningRecord)
    """What was removed from the architecture."""
    whole: Any = None
    """The library's model that the parts of `sam` were made of."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in FP32, ready for torch steps and export."""

    spec: ModelSpec
    parts: tuple[ExportPart, ...]
    attention: tuple[AttentionSite, ...] = field(default=())
    """Paths are in the module of the first part."""
    rebuild: Rebuild | None = None
    """None for a model that cannot be saved as a folder."""
    tracking: TrackingEntry | None = None
    """What following an object over frames needs to know; None for a model of single pictures."""

    @property
    def class_output(self) -> str | None:
        """The output that holds one value per class, or None."""
        tensors = [tensor for part in self.parts for tensor in part.outputs]
        return class_output(self.spec.task, ((t.name, len(t.shape)) for t in tensors))
