"""Forward passes for attention layers of timm that take it for granted that heads fill the width.

Five of timm's layers reshape to the width C of their input, which fails once heads are gone. Each
function here is that layer's own forward with heads * head_dim in that one place, and is bound to
the instance; layers that are not named here need nothing (timm's common `Attention` has its own
`attn_dim`, from 1.0.23 on). Seen in timm 1.0.31.
"""

import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import linear, normalize

_MAX_LOGIT_SCALE = math.log(1.0 / 0.01)


def allow_narrow_(layer: nn.Module) -> None:
    """Give `layer` a forward pass that does not need heads * head_dim to be its input's width."""
    forward = _FORWARDS.get((type(layer).__module__, type(layer).__name__))
    if forward is not None:
        layer.forward = types.MethodType(forward, layer)


def _projected(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return q, k, v (B, heads, N, head_dim) of tokens (B, N, C), biases kept apart included."""
    rows, tokens, _ = x.shape
    if layer.q_bias is None:
        packed = layer.qkv(x)
    else:
        bias = torch.cat((layer.q_bias, layer.k_bias, layer.v_bias))
        packed = linear(x, layer.qkv.weight, bias)
    packed = packed.reshape(rows, tokens, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    return tuple(packed.unbind(0))


def _merged(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the projection of (B, heads, N, head_dim), as (B, N, C)."""
    rows, _, tokens, _ = x.shape
    return layer.proj_drop(layer.proj(x.transpose(1, 2).reshape(rows, tokens, -1)))


def _dropout(layer: Any) -> float:
    return float(layer.attn_drop.p) if layer.training else 0.0


def _swinv2(self: Any, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Windows (B * windows, N, C) -> the same; `mask` (windows, N, N)."""
    tokens = x.shape[1]
    q, k, v = _projected(self, x)
    scores = normalize(q, dim=-1) @ normalize(k, dim=-1).transpose(-2, -1)
    scores = scores * torch.clamp(self.logit_scale, max=_MAX_LOGIT_SCALE).exp()
    table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
    bias = table[self.relative_position_index.view(-1)].view(tokens, tokens, -1)
    scores = scores + 16 * torch.sigmoid(bias.permute(2, 0, 1).contiguous()).unsqueeze(0)
    if mask is not None:
        windows = mask.shape[0]
        scores = scores.view(-1, windows, self.num_heads, tokens, tokens)
        scores = (scores + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.num_heads, tokens, tokens)
    return _merged(self, self.attn_drop(self.softmax(scores)) @ v)


def _swinv2_cr(self: Any, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Windows (B * windows, N, C) -> the same; `mask` (windows, N, N)."""
    rows, tokens, _ = x.shape
    packed = self.qkv(x).view(rows, tokens, 3, self.num_heads, -1)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    scores = normalize(q, dim=-1) @ normalize(k, dim=-1).transpose(-2, -1)
    scale = self.logit_scale.reshape(1, self.num_heads, 1, 1)
    scores = scores * torch.clamp(scale, max=_MAX_LOGIT_SCALE).exp()
    scores = scores + self._relative_positional_encodings()
    if mask is not None:
        windows = mask.shape[0]
        scores = scores.view(-1, windows, self.num_heads, tokens, tokens)
        scores = (scores + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.num_heads, tokens, tokens)
    return _merged(self, self.attn_drop(scores.softmax(dim=-1)) @ v)


def _fastvit(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Map (B, C, H, W) -> the same."""
    shape = x.shape
    tokens = x.flatten(2).transpose(-2, -1)
    packed = self.qkv(tokens).reshape(shape[0], -1, 3, self.num_heads, self.head_dim)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    x = functional.scaled_dot_product_attention(q, k, v, dropout_p=_dropout(self))
    return _merged(self, x).transpose(-2, -1).reshape(shape)


def _beit(
    self: Any, x: torch.Tensor, shared_rel_pos_bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Tokens (B, N, C) -> the same; a bias shared by all layers (1, heads, N, N)."""
    q, k, v = _projected(self, x)
    bias = shared_rel_pos_bias
    if self.relative_position_bias_table is not None:
        own = self._get_rel_pos_bias()
        bias = own if bias is None else own + bias
    x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=_dropout(self))
    return _merged(self, x)


def _eva(
    self: Any,
    x: torch.Tensor,
    rope: torch.Tensor | None = None,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Tokens (B, N, C) -> the same; `rope` (N - prefix tokens, 2 head_dim)."""
    from timm.layers import apply_rot_embed_cat

    rows, tokens, _ = x.shape
    if self.qkv is not None:
        q, k, v = _projected(self, x)
    else:
        q, k, v = (
            part(x).reshape(rows, tokens, self.num_heads, -1).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
    q, k = self.q_norm(q), self.k_norm(k)
    if rope is not None:
        first = self.num_prefix_tokens
        q, k = (
            torch.cat(
                [
                    part[:, :, :first],
                    apply_rot_embed_cat(part[:, :, first:], rope, half=self.rotate_half),
                ],
                dim=2,
            ).type_as(v)
            for part in (q, k)
        )
    x = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_mask, dropout_p=_dropout(self), is_causal=is_causal
    )
    return _merged(self, x)


_FORWARDS: Mapping[tuple[str, str], Callable[..., torch.Tensor]] = types.MappingProxyType(
    {
        ("timm.models.swin_transformer_v2", "WindowAttention"): _swinv2,
        ("timm.models.swin_transformer_v2_cr", "WindowMultiHeadAttention"): _swinv2_cr,
        ("timm.models.fastvit", "Attention"): _fastvit,
        ("timm.models.beit", "Attention"): _beit,
        ("timm.models.eva", "EvaAttention"): _eva,
    }
)
