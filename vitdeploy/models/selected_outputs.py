"""What a connector, a detector or an index takes from an image encoder: `--outputs`.

Each kind has one name in the graph, `OUTPUT_NAMES`. Here the kinds are computed from what the
model of timm or transformers returns; where tokens lie is `token_layout`'s, the outputs that a
model has by default are `outputs`'.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models.token_layout import TokenLayout
from vitdeploy.recipe.names import PIXEL_SHUFFLE, pixel_shuffle_factor

OUTPUT_NAMES: Mapping[str, str] = {
    "logits": "logits",
    "cls": "cls_token",
    "patch": "feature_map",
    "pooled": "pooler_output",
    "mean": "mean_pooled",
    "attention": "attentions",
}
"""Names in the graph; a pyramid is `feature_map_1`.. and shuffled pixels are `image_features`."""
SHUFFLED_NAME = "image_features"
PYRAMID_LEVELS = 4
_FINEST_STRIDE = 4


class Encoder(Protocol):
    """A library's model, as `SelectedOutputs` reads it."""

    model: nn.Module

    def features(self, pixels: torch.Tensor, /) -> Any:
        """Return what the other methods read, (N, tokens, C) or (N, C, H, W) inside."""
        ...

    def tokens(self, features: Any, /) -> torch.Tensor:
        """Return features (N, tokens, C) or (N, C, H, W), after the model's last norm."""
        ...

    def pooled(self, features: Any, /) -> torch.Tensor:
        """Return (N, C), what a classifier would read."""
        ...

    def logits(self, features: Any, /) -> torch.Tensor:
        """Return (N, classes)."""
        ...

    def attention(self, features: Any, /) -> torch.Tensor:
        """Return the last layer's attention, (N, heads, tokens, tokens) after softmax."""
        ...

    def pyramid(self, pixels: torch.Tensor, /) -> Sequence[torch.Tensor]:
        """Return every stage's map (N, C, H, W), the finest first."""
        ...


class SelectedOutputs(nn.Module):  # type: ignore[misc]
    """Returns the chosen kinds of outputs, one tensor each; a pyramid as one tensor a level."""

    def __init__(self, encoder: Any, kinds: tuple[str, ...], layout: TokenLayout | None) -> None:
        """Take an `Encoder` that is an `nn.Module`; a pyramid needs no layout."""
        super().__init__()
        self.encoder = encoder
        self.kinds = kinds
        self.layout = layout

    @property
    def model(self) -> nn.Module:
        """The model of timm or transformers."""
        model: nn.Module = self.encoder.model
        return model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs in the order of `kinds`; `pixel_values` (N, 3, H, W) float32."""
        if self.kinds == ("pyramid",):
            return coarsest_levels(self.encoder.pyramid(pixel_values), pixel_values.shape[-1])
        features = self.encoder.features(pixel_values)
        return tuple(self._output(kind, features) for kind in self.kinds)

    def _output(self, kind: str, features: Any) -> torch.Tensor:
        if kind == "logits":
            return self.encoder.logits(features)
        if kind == "pooled":
            return self.encoder.pooled(features).flatten(1)
        layout = self.layout
        assert layout is not None
        if kind == "attention":
            weights = self.encoder.attention(features)[:, :, 0, layout.prefix :]
            assert layout.grid is not None
            return weights.reshape(*weights.shape[:2], *layout.grid)
        tokens = self.encoder.tokens(features)
        if kind == "cls":
            return tokens[:, 0]
        patches = layout.patches(tokens)
        if kind == "patch":
            return patches
        if kind == "mean":
            return patches.mean((2, 3))
        return pixel_shuffled(patches, pixel_shuffle_factor(kind))


def pixel_shuffled(patches: torch.Tensor, factor: int) -> torch.Tensor:
    """Return tokens (N, H / K * W / K, K * K * C) of patches (N, C, H, W), K = `factor`.

    The channels of a square of K x K patches follow one another row by row, as in the connectors
    of InternVL (arXiv 2404.16821) and Idefics 3 (arXiv 2408.12637).
    """
    count, channels, rows, columns = patches.shape
    rows, columns = rows // factor, columns // factor
    squares = patches.reshape(count, channels, rows, factor, columns, factor)
    return squares.permute(0, 2, 4, 3, 5, 1).reshape(
        count, rows * columns, factor * factor * channels
    )


def coarsest_levels(maps: Sequence[torch.Tensor], image_size: int) -> tuple[torch.Tensor, ...]:
    """Return the last map of each resolution from 1/4 down, four at most, the finest first.

    A model whose patches are finer than that throughout keeps its own levels.

    Args:
        maps: (N, C, H, W) of every stage, the finest first.
        image_size: pixels of the square input.
    """
    last = {feature.shape[-1]: feature for feature in maps}
    coarse = {side: f for side, f in last.items() if image_size // side >= _FINEST_STRIDE}
    kept = coarse if len(coarse) > 1 else last
    return tuple(kept[side] for side in sorted(kept, reverse=True)[-PYRAMID_LEVELS:])


def output_names(kinds: tuple[str, ...], levels: int) -> tuple[str, ...]:
    """Return the names of the outputs of `kinds`; `levels` are those of a pyramid."""
    if kinds == ("pyramid",):
        return tuple(f"feature_map_{level + 1}" for level in range(levels))
    return tuple(
        SHUFFLED_NAME if kind.startswith(PIXEL_SHUFFLE) else OUTPUT_NAMES[kind] for kind in kinds
    )


def require_kinds(kinds: Sequence[str], available: Sequence[str], shown: str) -> None:
    """Raise where a model lacks one of `kinds`.

    Args:
        kinds: as asked for.
        available: those that the model has, `pixel-shuffle-K` for any K.
        shown: the model, as the user called it.

    Raises:
        UsageError: lists the outputs that the model has.
    """
    lacking = [
        kind
        for kind in kinds
        if ("pixel-shuffle-K" if kind.startswith(PIXEL_SHUFFLE) else kind) not in available
    ]
    if lacking:
        raise UsageError(
            f"--outputs {','.join(kinds)}: {shown} has no {', '.join(map(_reason, lacking))}. "
            f"It has: {', '.join(available)}."
        )


def require_factor(kinds: Sequence[str], layout: TokenLayout, shown: str) -> None:
    """Raise where the grid of patches does not divide by a pixel shuffle's factor.

    Raises:
        UsageError: names the factors that divide it.
    """
    for kind in kinds:
        if not kind.startswith(PIXEL_SHUFFLE) or layout.grid is None:
            continue
        rows, columns = layout.grid
        if rows % pixel_shuffle_factor(kind) or columns % pixel_shuffle_factor(kind):
            common = math.gcd(rows, columns)
            fits = [str(k) for k in range(2, common + 1) if common % k == 0]
            raise UsageError(
                f"--outputs {kind}: {shown} has {rows} x {columns} patches, which do not divide "
                f"by {pixel_shuffle_factor(kind)}. Factors that do: {', '.join(fits) or 'none'}; "
                "or choose another --image-size."
            )


def require_square(weights: torch.Tensor | None, tokens: int, shown: str) -> None:
    """Raise where the last attention layer does not relate every token to every token.

    Raises:
        UsageError: tells the shape of the weights.
    """
    if weights is None or weights.ndim != 4 or tuple(weights.shape[2:]) != (tokens, tokens):
        seen = "not computed as such" if weights is None else f"of shape {tuple(weights.shape)}"
        raise UsageError(
            f"--outputs attention: the weights of the last attention layer of {shown} are {seen}, "
            f"not {tokens} x {tokens} tokens. Choose other outputs."
        )


class AttentionTap(nn.Module):  # type: ignore[misc]
    """Stands for the dropout of attention weights, and keeps what goes through until taken."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: torch.Tensor | None = None

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """Return `weights` as they are."""
        self.seen = weights
        return weights

    def take(self) -> torch.Tensor:
        """Return the weights of the last run, and forget them, as an export demands.

        Raises:
            ModelError: the layer did not use its dropout.
        """
        weights, self.seen = self.seen, None
        if weights is None:
            raise ModelError(
                "--outputs attention: the last attention layer does not compute its weights in "
                "one place any more (its heads were pruned). Choose other outputs, or the whole "
                "model."
            )
        return weights


def _reason(kind: str) -> str:
    if kind == "cls":
        return "cls (no class token)"
    if kind == "pyramid":
        return "pyramid (no stages of several resolutions)"
    if kind == "attention":
        return "attention (no class token that attends to patches)"
    return kind
