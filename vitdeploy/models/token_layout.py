"""Where the class token, the registers and the patches lie in what an image encoder returns.

Read from the model's own parameters and from the shape of its features; what cannot be read is
None or False here, never assumed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")
_OTHER_TOKENS = ("dist_token", "distillation_token", "reg_token", "register_tokens")


@dataclass(frozen=True)
class TokenLayout:
    """How features (N, tokens, C) or (N, C, H, W) are to be read."""

    prefix: int
    """Tokens before the patches: class, distillation and register tokens; 0 for a map."""
    has_cls: bool
    """Whether the first token is the class token."""
    grid: tuple[int, int] | None
    """Rows and columns of patches; None where they are not known."""

    def patches(self, features: torch.Tensor) -> torch.Tensor:
        """Return the patches (N, C, H, W) of features, without what stands before them."""
        if features.ndim == 4:
            return features
        assert self.grid is not None
        tokens = features[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(tokens.shape[0], tokens.shape[1], *self.grid)


def layout_of(model: nn.Module, shape: Sequence[int]) -> TokenLayout:
    """Return the layout of a model's features for a square picture.

    Args:
        model: of timm or transformers.
        shape: of its features: (N, tokens, C), or a map (N, C, H, W).
    """
    if len(shape) == 4:
        return TokenLayout(0, has_cls=False, grid=(shape[2], shape[3]))
    counts = _token_counts(model)
    has_cls = any(name in counts for name in _CLASS_TOKENS)
    prefix: Any = getattr(model, "num_prefix_tokens", None)
    if not isinstance(prefix, int):
        prefix = sum(counts.values())
    side = math.isqrt(max(shape[1] - prefix, 0))
    grid = (side, side) if side and side * side == shape[1] - prefix else None
    return TokenLayout(prefix, has_cls and prefix > 0, grid)


def _token_counts(model: nn.Module) -> dict[str, int]:
    """Return by name how many tokens each learned token parameter of the model adds."""
    counts: dict[str, int] = {}
    for path, parameter in model.named_parameters():
        name = path.rpartition(".")[2]
        if name in (*_CLASS_TOKENS, *_OTHER_TOKENS):
            counts[name] = parameter.shape[-2] if parameter.ndim > 1 else 1
    return counts
