"""What a model says of a batch of pictures, by kind.

The same for students and teachers, so that losses know no architecture. `logits` (B, classes),
`token_logits` (B, classes) of a distillation token while training, `summary` (B, C) pooled
features, `patches` (B, h, w, C) the feature map.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitdeploy.errors import CompressionError
from vitdeploy.models.outputs import FEATURE_NAMES, as_tokens
from vitdeploy.models.spec import LoadedModel

Answers = dict[str, torch.Tensor]
FEATURES = ("summary", "patches")
_EMBEDDINGS = "image_embeddings"


class TimmAnswers(nn.Module):  # type: ignore[misc]
    """Asks a timm model for logits, features, or both in one pass."""

    def __init__(self, model: nn.Module, kinds: frozenset[str]) -> None:
        super().__init__()
        self.model = model
        self.kinds = kinds

    def forward(self, pixels: torch.Tensor) -> Answers:
        """Return the answers; `pixels` (B, 3, H, W) float32, normalised."""
        if not self.kinds & set(FEATURES):
            return _with_token(self.model(pixels))
        features = self.model.forward_features(pixels)
        channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        tokens = as_tokens(features, channels_last=channels_last)
        found = {
            "summary": self.model.forward_head(features, pre_logits=True),
            "patches": patches_from_tokens(tokens),
        }
        if "logits" in self.kinds:
            found |= _with_token(self.model.forward_head(features))
        return found


class NamedAnswers(nn.Module):  # type: ignore[misc]
    """Asks a module whose outputs have the names of an exported part."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = module
        self.names = names

    def forward(self, pixels: torch.Tensor) -> Answers:
        """Return the answers; `pixels` (B, 3, H, W) float32, normalised."""
        outputs = self.model(pixels)
        values = outputs if isinstance(outputs, tuple) else (outputs,)
        return answers_from_outputs(dict(zip(self.names, values, strict=True)))


def kinds_of(loaded: LoadedModel) -> frozenset[str]:
    """Return the kinds of answers that a loaded model can give."""
    part = loaded.parts[0]
    if _is_timm(loaded):
        classes = getattr(part.module, "num_classes", 0)
        return frozenset(("logits", *FEATURES) if classes else FEATURES)
    names = {tensor.name for tensor in part.outputs}
    kinds = {"logits"} if loaded.class_output else set()
    kinds |= {"patches"} if names & {FEATURE_NAMES[0], _EMBEDDINGS} else set()
    return frozenset(kinds | ({"summary"} if FEATURE_NAMES[1] in names else set()))


def kinds_given(loaded: LoadedModel, asked: frozenset[str]) -> frozenset[str]:
    """Return which of the kinds asked for a model gives: logits, and the features it has.

    Raises:
        CompressionError: it has no logits, or neither summary nor patches, and they are asked for.
    """
    known = kinds_of(loaded)
    features = asked & set(FEATURES)
    if ("logits" in asked - known) or (features and not features & known):
        raise CompressionError(
            f"'{loaded.spec.name}' does not give {', '.join(sorted(asked - known))}, only "
            f"{', '.join(sorted(known)) or 'other outputs'}. Use another --distillation-type, or "
            "other --features. An ONNX file gives logits (an output 'logits', or the only one of "
            "two axes), or features ('pooler_output', 'last_hidden_state')."
        )
    return asked & known


def answering(loaded: LoadedModel, kinds: frozenset[str]) -> nn.Module:
    """Return a module from pixels to `Answers` around the torch model of `loaded`.

    Raises:
        CompressionError: see `kinds_given`.
    """
    kinds = kinds_given(loaded, kinds)
    part = loaded.parts[0]
    if _is_timm(loaded):
        model = getattr(part.module, "model", part.module)
        return TimmAnswers(model, kinds)
    names = tuple(tensor.name for tensor in part.outputs)
    class_output = loaded.class_output
    return NamedAnswers(
        part.module, tuple("logits" if name == class_output else name for name in names)
    )


def answers_from_outputs(outputs: Mapping[str, torch.Tensor]) -> Answers:
    """Return the answers in outputs with the ecosystem's names; others are left out."""
    found: Answers = {}
    if "logits" in outputs:
        found["logits"] = outputs["logits"]
    if FEATURE_NAMES[1] in outputs:
        found["summary"] = outputs[FEATURE_NAMES[1]]
    if FEATURE_NAMES[0] in outputs:
        found["patches"] = patches_from_tokens(outputs[FEATURE_NAMES[0]])
    if _EMBEDDINGS in outputs:  # Segment Anything's encoder: (B, C, h, w)
        found["patches"] = outputs[_EMBEDDINGS].permute(0, 2, 3, 1)
    return found


def patches_from_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """Return (B, h, h, C): the last h * h of the (B, N, C) tokens.

    What comes before them are class, distillation and register tokens: fewer than would make
    the grid one larger.
    """
    side = math.isqrt(tokens.shape[1])
    return tokens[:, tokens.shape[1] - side * side :].unflatten(1, (side, side))


def _is_timm(loaded: LoadedModel) -> bool:
    module: Any = loaded.parts[0].module
    return hasattr(getattr(module, "model", module), "forward_head")


def _with_token(result: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> Answers:
    if isinstance(result, tuple):
        return {"logits": result[0], "token_logits": result[1]}
    return {"logits": result}
