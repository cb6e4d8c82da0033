"""What every family returns: the loaded model and its exportable parts.

No architecture lives here, only the types that keep it from leaking elsewhere.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitdeploy.data import Preprocess

Task = Literal["classification", "features", "segmentation"]
Outputs = Literal["logits", "features"]


@dataclass(frozen=True)
class LoadOptions:
    """What to load and how; the fields are the flags of `vitdeploy export`."""

    source: str
    """`MODEL`: an alias, `timm:NAME`, `hf:REPO` or a model folder."""
    checkpoint: Path | None = None
    random_weights: bool = False
    image_size: int | None = None
    """Pixels of the square input; None is the model's own."""
    outputs: Outputs | None = None
    """None is `logits` where the model has a classifier, else `features`."""
    seed: int = 0
    """Of the random weights."""


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
    """A key of `FAMILIES`."""
    source: str
    """Where it came from: `timm:NAME`, `hf:REPO`, `folder:NAME` (no machine path), `onnx:NAME`."""
    task: Task
    preprocess: Preprocess
    label_names: tuple[str, ...] = ()
    weights: Literal["pretrained", "checkpoint", "random", "packaged"] = "pretrained"
    calibration_set: str = "photos"
    """The packaged image set that fits the task: `digits` or `photos`."""
    notes: tuple[str, ...] = ()
    """What the user should know, for instance of a resampled position embedding."""


@dataclass(frozen=True)
class ExportPart:
    """One module that becomes one ONNX file."""

    name: str
    """`model` where there is one part; file stem of the artefact."""
    module: Any
    """A `torch.nn.Module` in eval mode, FP32; takes and returns tensors in the order of
    `inputs` and `outputs` (one tensor, or a tuple of them)."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


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
class LoadedModel:
    """A model in FP32, ready for torch steps and export."""

    spec: ModelSpec
    parts: tuple[ExportPart, ...]
    attention: tuple[AttentionSite, ...] = field(default=())
