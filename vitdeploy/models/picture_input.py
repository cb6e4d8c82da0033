"""Image encoders of transformers that read something else than whole pictures, made to read those.

Masked autoencoders hide patches at random, as training does; NaFlex encoders read patches that a
processor cut out, with the shape of their grid. Deployed, both are given one picture of one size.
"""

from typing import Any

import torch
from torch import nn

_NAFLEX = "Siglip2VisionModel"


def reading_pictures(model: nn.Module, size: int) -> nn.Module:
    """Return the model as a function of pictures alone, of `size` pixels.

    Most read them already and come back as they are; a masked autoencoder has its masking taken
    out, in place; a NaFlex encoder comes back inside a `NaflexPictures`.
    """
    for module in model.modules():
        if hasattr(module, "random_masking"):
            module.random_masking = _every_patch
    return NaflexPictures(model, size) if type(model).__name__ == _NAFLEX else model


def _every_patch(sequence: torch.Tensor, noise: Any = None) -> tuple[torch.Tensor, Any, Any]:
    """Return all patches in their order, and no mask; takes the place of `random_masking`."""
    return sequence, None, None


class NaflexPictures(nn.Module):  # type: ignore[misc]
    """SigLIP 2's NaFlex image tower on square pictures without padding.

    The positions are resized once, as the encoder itself does for such a grid, and become a
    constant; without padding its attention needs no mask.
    """

    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.patch_size = int(model.config.patch_size)
        side = size // self.patch_size
        embeddings = model.embeddings
        grid = embeddings.position_embedding.weight.detach()
        length = embeddings.position_embedding_size
        positions = embeddings.resize_positional_embeddings(
            grid.reshape(length, length, -1), torch.tensor([[side, side]]), max_length=side * side
        )
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        """Return the outputs of transformers' encoders; `pixel_values` (N, 3, H, W) float32."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        tokens = self.model.embeddings.patch_embedding(self._patches(pixel_values))
        encoded = self.model.encoder(inputs_embeds=tokens + self.positions).last_hidden_state
        normed = self.model.post_layernorm(encoded)
        pooled = self.model.head(normed, None) if self.model.use_head else None
        return BaseModelOutputWithPooling(last_hidden_state=normed, pooler_output=pooled)

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (N, patches, patch * patch * 3): row by row, colours last."""
        side = self.patch_size
        blocks = pixels.unfold(2, side, side).unfold(3, side, side)  # (N, 3, rows, columns, y, x)
        return blocks.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
