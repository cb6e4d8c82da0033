"""The towers of a model that compares pictures with texts, as modules from tensors to tensors."""

from typing import Any

import torch
from torch import nn

from vitdeploy.models.spec import AttentionSite, ExportPart, TensorSpec
from vitdeploy.models.trace import trace


class ImageTower(nn.Module):  # type: ignore[misc]
    """Pictures -> embeddings of length one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        if hasattr(model, "visual_projection"):
            self.visual_projection = model.visual_projection

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return (N, D) float32; `pixel_values` (N, 3, H, W)."""
        pooled = self.vision_model(pixel_values=pixel_values).pooler_output
        if hasattr(self, "visual_projection"):
            pooled = self.visual_projection(pooled)
        return _of_length_one(pooled)


class TextTower(nn.Module):  # type: ignore[misc]
    """Token ids -> embeddings of length one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = model.text_model
        if hasattr(model, "text_projection"):
            self.text_projection = model.text_projection

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return (N, D) float32; `input_ids` (N, length) int64, padded to the full length."""
        pooled = self.text_model(input_ids=input_ids).pooler_output
        if hasattr(self, "text_projection"):
            pooled = self.text_projection(pooled)
        return _of_length_one(pooled)


def traced_part(
    module: nn.Module, image_size: int, output: str
) -> tuple[ExportPart, tuple[AttentionSite, ...]]:
    """Return the part `image_encoder` with its one output, and its attention layers.

    Raises:
        ModelError: the module does not run at `image_size` pixels.
    """
    module.eval()
    traced = trace(module, image_size)
    part = ExportPart(
        "image_encoder",
        module,
        (TensorSpec("pixel_values", ("batch", 3, image_size, image_size)),),
        (TensorSpec(output, ("batch", *traced.outputs[0][1:])),),
    )
    return part, traced.attention


def _of_length_one(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings / embeddings.norm(dim=-1, keepdim=True)
