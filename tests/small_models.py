"""Parts and loaded models that tests make without a family, a folder or a hub."""

from typing import Any

import torch

from tests.model_folders import shake_
from vitdeploy.data import Preprocess
from vitdeploy.models.spec import ExportPart, LoadedModel, ModelSpec, TensorSpec

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
}
PREPROCESS = Preprocess((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def part_from_module(module: torch.nn.Module, size: int = 32, classes: int = 5) -> ExportPart:
    """A classifier's part: `pixel_values` (batch, 3, size, size) -> `logits` (batch, classes)."""
    return ExportPart(
        "model",
        module.eval(),
        (TensorSpec("pixel_values", ("batch", 3, size, size)),),
        (TensorSpec("logits", ("batch", classes)),),
    )


def timm_part(architecture: str, **arguments: Any) -> ExportPart:
    """A shaken classifier of timm's with five classes."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5, **arguments)
    shake_(model)
    return part_from_module(model)


def loaded_from_part(part: ExportPart | None = None, **changes: Any) -> LoadedModel:
    """A `LoadedModel` around a part that nothing runs; `changes` are fields of its spec."""
    if part is None:
        part = ExportPart(
            "model",
            None,
            (TensorSpec("pixel_values", ("batch", 3, 32, 32)),),
            (TensorSpec("logits", ("batch", 3)),),
        )
    fields: dict[str, Any] = {
        "name": "small",
        "family": "vit",
        "source": "folder:small",
        "task": "classification",
        "preprocess": PREPROCESS,
        "label_names": ("red", "green", "blue"),
        **changes,
    }
    return LoadedModel(ModelSpec(**fields), (part,))
