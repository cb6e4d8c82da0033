"""Removing heads, hidden channels and blocks from a torch module, in place and for good.

Which ones is not decided here (see `compress.prune`), and nothing here knows an architecture:
sites say where the layers are. After this, weights are smaller tensors; no mask is left.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from vitdeploy.errors import CompressionError
from vitdeploy.models.mlp_sites import rows_of
from vitdeploy.models.narrow_attention import allow_narrow_
from vitdeploy.models.spec import AttentionSite, MlpSite

_HEAD_COUNTS = (
    "num_heads",
    "heads",
    "num_attention_heads",
    "num_kv_heads",
    "num_key_value_heads",
)
_WIDTHS = ("attn_dim", "kv_dim", "all_head_size", "dim_out", "hidden_size_output", "embed_dim")
_BIASES = ("q_bias", "k_bias", "v_bias")
# Axis that has an entry per head.
_PER_HEAD_AXIS = {"relative_position_bias_table": 1, "logit_scale": 0, "weight": 0, "bias": 0}


def unprunable_heads(module: nn.Module, site: AttentionSite) -> str | None:
    """Return why the heads of an attention layer cannot be removed one by one, or None."""
    layer = module.get_submodule(site.path)
    width = site.num_heads * site.head_dim
    norm = getattr(layer, "norm", None)
    if isinstance(norm, nn.Module) and any(width in p.shape for p in norm.parameters()):
        return "it normalises over all heads together"
    if getattr(layer, "gate", None) is not None:
        return "its output has a gate"
    packed = 3 if len(site.qkv) == 1 else 1
    if any(rows_of(module.get_submodule(path)) != packed * width for path in site.qkv):
        return "several heads share one key"
    if module.get_submodule(site.proj).in_features != width:
        return "its values are wider than its keys"
    if getattr(layer, "head_first", False):
        return "its layer gives q, k and v head by head"
    return None


def keep_heads_(module: nn.Module, site: AttentionSite, kept: Sequence[int]) -> None:
    """Remove all heads of an attention layer of `module` but `kept` (indices, ascending).

    Raises:
        CompressionError: no head is kept, or an index is not that of a head.
    """
    _require(kept, site.num_heads, f"heads of '{site.path}'")
    layer = module.get_submodule(site.path)
    dim, width = site.head_dim, site.num_heads * site.head_dim
    rows = torch.tensor([head * dim + i for head in kept for i in range(dim)])
    packed = torch.cat([part * width + rows for part in range(3)])
    for path in site.qkv:
        _keep_rows_(module.get_submodule(path), packed if len(site.qkv) == 1 else rows)
    for name in _BIASES:
        bias = getattr(layer, name, None)
        if isinstance(bias, torch.Tensor):
            _replace_(layer, name, bias.detach()[rows.to(bias.device)])
    for path in site.per_head:
        parent, _, name = path.rpartition(".")
        owner = module.get_submodule(parent)
        tensor = module.get_parameter(path).detach()
        index = torch.tensor(list(kept), device=tensor.device)
        is_map = tensor.ndim == 3  # MaxViT's table: (heads, 2 rows - 1, 2 columns - 1)
        _replace_(owner, name, tensor.index_select(0 if is_map else _PER_HEAD_AXIS[name], index))
        _set_where_there_(owner, ("out_features",), len(kept))
    _set_bias_shape_(getattr(layer, "rel_pos", None), len(kept))
    _keep_columns_(module.get_submodule(site.proj), rows)
    _set_where_there_(layer, _HEAD_COUNTS, len(kept))
    _set_where_there_(layer, _WIDTHS, len(kept) * dim)
    allow_narrow_(layer)


def keep_channels_(module: nn.Module, site: MlpSite, kept: Sequence[int]) -> None:
    """Remove all hidden channels of an MLP of `module` but `kept` (indices, ascending).

    Raises:
        CompressionError: no channel is kept, or an index is not that of a channel.
    """
    _require(kept, site.width, f"channels of '{site.path}'")
    rows = torch.tensor(list(kept))
    for path in site.inputs:
        both = torch.cat([rows, site.width + rows]) if site.is_packed else rows
        _keep_rows_(module.get_submodule(path), both)
    _keep_columns_(module.get_submodule(site.output), rows)


def remove_blocks_(module: nn.Module, paths: Iterable[str]) -> None:
    """Remove whole residual blocks, given as `container.number`; those behind them move up.

    Raises:
        CompressionError: a container would be left empty, or a path is that of no block.
    """
    numbers: dict[str, set[int]] = {}
    for path in paths:
        parent, _, number = path.rpartition(".")
        if not number.isdecimal():
            raise CompressionError(
                f"'{path}' is not a numbered block of a list, so it cannot be removed. "
                "Blocks are given as container.number, for instance blocks.3."
            )
        numbers.setdefault(parent, set()).add(int(number))
    for parent, gone in numbers.items():
        container: Any = module.get_submodule(parent)
        if max(gone) >= len(container):
            raise CompressionError(
                f"there is no block '{parent}.{max(gone)}': '{parent}' has {len(container)}."
            )
        if len(container) <= len(gone):
            raise CompressionError(
                f"removing {len(gone)} of {len(container)} blocks of '{parent}' leaves none; "
                "keep at least one."
            )
        for index in sorted(gone, reverse=True):
            del container[index]


def block_of(path: str) -> str | None:
    """Return the path of the numbered block that holds a layer, or None."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if parts[end].isdecimal():
            return ".".join(parts[: end + 1])
    return None


def _require(kept: Sequence[int], count: int, what: str) -> None:
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise CompressionError(
            f"cannot keep {list(kept)[:8]} of {count} {what}: at least one, ascending, and each "
            f"from 0 to {count - 1}."
        )


def _keep_rows_(layer: nn.Module, rows: torch.Tensor) -> None:
    index = rows.to(layer.weight.device)
    _replace_(layer, "weight", layer.weight.detach()[index])
    if layer.bias is not None:
        _replace_(layer, "bias", layer.bias.detach()[index])
    _set_where_there_(layer, ("out_features", "out_channels"), len(rows))


def _keep_columns_(layer: nn.Module, columns: torch.Tensor) -> None:
    _replace_(layer, "weight", layer.weight.detach()[:, columns.to(layer.weight.device)])
    _set_where_there_(layer, ("in_features", "in_channels"), len(columns))


def _replace_(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, with memory of its own."""
    old = getattr(layer, name)
    value = value.clone(memory_format=torch.contiguous_format)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(layer, name, value)


def _set_bias_shape_(rel_pos: Any, heads: int) -> None:
    """Tell one of timm's relative position modules, where there is one, how many heads it has."""
    if hasattr(rel_pos, "bias_shape"):
        shape = list(rel_pos.bias_shape)
        shape[0 if hasattr(rel_pos, "height_lookup") else -1] = heads  # MaxViT's: heads first
        rel_pos.bias_shape = tuple(shape)
        _set_where_there_(rel_pos, _HEAD_COUNTS, heads)


def _set_where_there_(layer: nn.Module, names: Iterable[str], value: int) -> None:
    for name in names:
        if isinstance(getattr(layer, name, None), int):
            setattr(layer, name, value)
