"""Models of timm and of transformers as `selected_outputs` reads them, and which kinds they have.

The kinds come from a run of shapes: a kind that a model only seems to have is refused here, by
the name it has on the command line.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vitdeploy.models.selected_outputs import (
    AttentionTap,
    SelectedOutputs,
    coarsest_levels,
    output_names,
    require_factor,
    require_kinds,
    require_square,
)
from vitdeploy.models.token_layout import TokenLayout, layout_of
from vitdeploy.models.trace import run_shapes


class TimmEncoder(nn.Module):  # type: ignore[misc]
    """A model of timm; see `selected_outputs.Encoder`."""

    def __init__(self, model: nn.Module, *, with_attention: bool) -> None:
        super().__init__()
        self.model = model
        self.tap_path = _tapped_(model) if with_attention else None

    def features(self, pixels: torch.Tensor) -> Any:
        """Return what `forward_features` does; `pixels` (N, 3, H, W)."""
        return self.model.forward_features(pixels)

    def tokens(self, features: Any) -> torch.Tensor:
        """Return (N, tokens, C), or (N, C, H, W); those of Hiera in spatial order."""
        if hasattr(self.model, "reroll"):
            rows = self.model.reroll(features, len(self.model.blocks) - 1)
            return rows.permute(0, 3, 1, 2)
        if features.ndim == 4 and getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return features.permute(0, 3, 1, 2)
        return features

    def pooled(self, features: Any) -> torch.Tensor:
        """Return (N, C)."""
        return self.model.forward_head(features, pre_logits=True)

    def logits(self, features: Any) -> torch.Tensor:
        """Return (N, classes)."""
        return self.model.forward_head(features)

    def attention(self, features: Any) -> torch.Tensor:
        """Return (N, heads, tokens, tokens) of the run that made `features`."""
        tap = self.model.get_submodule(str(self.tap_path))
        assert isinstance(tap, AttentionTap)
        return tap.take()

    def pyramid(self, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return every stage's map, before the last norm, as timm's `features_only` does."""
        maps: Sequence[torch.Tensor] = self.model.forward_intermediates(
            pixels, intermediates_only=True, output_fmt="NCHW"
        )
        return maps


class TransformersEncoder(nn.Module):  # type: ignore[misc]
    """A model of transformers without a classifier's head; see `selected_outputs.Encoder`."""

    def __init__(self, model: nn.Module, *, with_attention: bool) -> None:
        super().__init__()
        self.model = model
        self.with_attention = with_attention

    def features(self, pixels: torch.Tensor) -> Any:
        """Return the model's own output; `pixels` (N, 3, H, W)."""
        return self.model(
            pixel_values=pixels, output_attentions=self.with_attention, return_dict=True
        )

    def tokens(self, features: Any) -> torch.Tensor:
        """Return `last_hidden_state`, (N, tokens, C) or (N, C, H, W)."""
        return features.last_hidden_state

    def pooled(self, features: Any) -> torch.Tensor:
        """Return `pooler_output`, (N, C)."""
        return features.pooler_output

    def logits(self, features: Any) -> torch.Tensor:
        """Return (N, classes)."""
        return features.logits

    def attention(self, features: Any) -> torch.Tensor:
        """Return (N, heads, tokens, tokens)."""
        return features.attentions[-1]

    def pyramid(self, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the stages that are maps; those of Swin before they are merged to coarser ones."""
        more: dict[str, bool] = {}
        if self.model.config.model_type == "swin":
            more["output_hidden_states_before_downsampling"] = True
        result = self.model(
            pixel_values=pixels, output_hidden_states=True, return_dict=True, **more
        )
        states = result.reshaped_hidden_states if more else result.hidden_states
        return [state for state in states or () if state.ndim == 4]


def select_outputs(
    model: nn.Module, kinds: tuple[str, ...], image_size: int, shown: str, *, has_classifier: bool
) -> tuple[SelectedOutputs, tuple[str, ...]]:
    """Return the module that gives `kinds` of a model, and the outputs' names.

    A model of timm whose attention is asked for computes its last attention layer in the open
    from then on; its weights and their names stay.

    Args:
        model: of timm, or of transformers without a classifier's head.
        kinds: as `recipe.names.canonical_outputs` returns them, not `features`.
        image_size: pixels of the square input.
        shown: the model, as the user called it.
        has_classifier: whether it gives logits.

    Raises:
        UsageError: the model lacks one of `kinds`; lists those that it has.
        ModelError: it does not run at this size.
    """
    model.eval()
    is_timm = hasattr(model, "forward_features")
    encoder_of = TimmEncoder if is_timm else TransformersEncoder
    plain = encoder_of(model, with_attention=False)
    layout, available = _found(plain, image_size, has_classifier=has_classifier)
    require_kinds(kinds, available, shown)
    if layout is not None:
        require_factor(kinds, layout, shown)
    with_attention = "attention" in kinds
    encoder = encoder_of(model, with_attention=with_attention)
    if with_attention:
        assert layout is not None
        assert layout.grid is not None
        tokens = layout.prefix + layout.grid[0] * layout.grid[1]
        require_square(_attention_shape(encoder, image_size), tokens, shown)
    module = SelectedOutputs(encoder, kinds, layout).eval()
    levels = len(run_shapes(module, image_size, _run)) if kinds == ("pyramid",) else 0
    return module, output_names(kinds, levels)


def _found(
    encoder: Any, image_size: int, *, has_classifier: bool
) -> tuple[TokenLayout | None, list[str]]:
    """Return where tokens lie, None where that is not known, and the kinds that there are."""

    def run(copied: Any, pixels: torch.Tensor) -> tuple[Any, Any, int]:
        features = copied.features(pixels)
        tokens = _or_none(lambda: copied.tokens(features))
        pooled = _or_none(lambda: copied.pooled(features))
        maps = _or_none(lambda: copied.pyramid(pixels)) or ()
        return tokens, pooled, len(coarsest_levels(maps, image_size))

    tokens, pooled, levels = run_shapes(encoder, image_size, run)
    is_read = isinstance(tokens, torch.Tensor) and tokens.ndim in (3, 4)
    layout = layout_of(encoder.model, tokens.shape) if is_read else None
    has = {
        "logits": has_classifier,
        "features": layout is not None,
        "cls": layout is not None and layout.has_cls,
        "patch": layout is not None and layout.grid is not None,
        "pooled": isinstance(pooled, torch.Tensor),
        "pyramid": levels > 1,
    }
    has["mean"] = has["pixel-shuffle-K"] = has["patch"]
    has["attention"] = has["cls"] and has["patch"]
    return layout, [kind for kind, is_there in has.items() if is_there]


def _tapped_(model: nn.Module) -> str | None:
    """Put an `AttentionTap` into the last attention layer; return its path, None without one."""
    layers = [
        (path, layer)
        for path, layer in model.named_modules()
        if isinstance(getattr(layer, "attn_drop", None), nn.Module) and hasattr(layer, "num_heads")
    ]
    if not layers:
        return None
    path, layer = layers[-1]
    layer.attn_drop = AttentionTap()
    if hasattr(layer, "fused_attn"):  # whose one operator does not show its weights
        layer.fused_attn = False
    return f"{path}.attn_drop"


def _attention_shape(encoder: Any, image_size: int) -> torch.Tensor | None:
    """Return the last layer's attention without its values, None where it does not show."""
    if isinstance(encoder, TimmEncoder) and encoder.tap_path is None:
        return None

    def run(copied: Any, pixels: torch.Tensor) -> torch.Tensor | None:
        features = copied.features(pixels)
        return copied.attention(features)

    weights: torch.Tensor | None = run_shapes(encoder, image_size, run)
    return weights


def _run(module: Any, pixels: torch.Tensor) -> Any:
    return module(pixels)


def _or_none(compute: Any) -> Any:
    """Return what `compute` does, None where the model has no such thing."""
    try:
        return compute()
    except (AttributeError, TypeError, ValueError, IndexError, AssertionError, RuntimeError):
        return None
