"""Shapes of a model's tensors, found without computing: a forward pass on the meta device.

Also where its attention layers are, since what a softmax row spans is such a shape.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitdeploy.errors import ModelError
from vitdeploy.models.spec import AttentionSite

_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_PROJECTIONS = ("proj", "o_proj", "out_proj", "projection_layer")
_HEADS = ("num_heads", "heads", "num_attention_heads")
# Swin's and SwinV2's in timm, the same in transformers
_PER_HEAD = (
    "relative_position_bias_table",
    "logit_scale",
    "cpb_mlp.2.weight",
    "continuous_position_bias_mlp.2.weight",
    "meta_mlp.fc2.weight",
    "meta_mlp.fc2.bias",
    "rel_pos.mlp.fc2.weight",
    "rel_pos.mlp.fc2.bias",
)


@dataclass(frozen=True)
class Trace:
    """What one forward pass at batch 1 showed."""

    outputs: tuple[tuple[int, ...], ...]
    attention: tuple[AttentionSite, ...]


def meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy of `module` on the meta device: its structure without its weights' memory."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, memo)


def run_shapes(
    module: nn.Module, image_size: int, run: Callable[[nn.Module, torch.Tensor], Any]
) -> Any:
    """Return `run(copy, input)` for a weightless copy of `module`; input (1, 3, H, W) float32.

    A model that keeps tensors outside its parameters and buffers does not run there; it is run
    for real, on zeros.

    Raises:
        ModelError: the model does not run at this size.
    """
    shape = (1, 3, image_size, image_size)
    try:
        with torch.no_grad():
            return run(meta_copy(module), torch.empty(shape, device="meta"))
    except (RuntimeError, NotImplementedError, ValueError, AssertionError, TypeError):
        pass
    try:
        with torch.no_grad():
            return run(module, torch.zeros(shape))
    except (RuntimeError, ValueError, AssertionError, TypeError) as e:
        size = f"{image_size}x{image_size}"
        raise ModelError(
            f"the model does not run on an input of {size} pixels: {str(e).rstrip('.')}. "
            "Choose another --image-size, or leave it out."
        ) from e


def trace(module: nn.Module, image_size: int) -> Trace:
    """Return output shapes and attention sites of `module` at `image_size`.

    Raises:
        ModelError: the model does not run at this size, or does not return tensors.
    """
    sites = list(find_attention_sites(module))

    def run(copied: nn.Module, images: torch.Tensor) -> tuple[Any, dict[str, int]]:
        tokens: dict[str, int] = {}
        hooks = [
            copied.get_submodule(site.path).register_forward_pre_hook(
                _token_counter(site, copied, tokens), with_kwargs=True
            )
            for site in sites
        ]
        try:
            return copied(images), tokens
        finally:
            for hook in hooks:
                hook.remove()

    outputs, tokens = run_shapes(module, image_size, run)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    if not all(isinstance(output, torch.Tensor) for output in outputs):
        raise ModelError(
            f"{type(module).__name__} returns {[type(o).__name__ for o in outputs]}, not tensors. "
            "Supported: image classifiers and image encoders."
        )
    found = tuple(
        AttentionSite(**{**vars(site), "tokens": tokens[site.path]})
        for site in sites
        if site.path in tokens
    )
    return Trace(tuple(tuple(output.shape) for output in outputs), found)


def _token_counter(
    site: AttentionSite, module: nn.Module, tokens: dict[str, int]
) -> Callable[[nn.Module, Any, dict[str, Any]], None]:
    channels = module.get_submodule(site.qkv[0]).in_features

    def count(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        # (images or windows, tokens, channels), or a map of the same; of the layer and not of its
        # projection, which SwinV2 applies without calling it
        rows = inputs[0] if inputs else next(iter(named.values()))
        tokens[site.path] = rows.numel() // (rows.shape[0] * channels)

    return count


def find_attention_sites(module: nn.Module) -> Iterator[AttentionSite]:
    """Yield the self-attention layers with Linear projections, `tokens` still unknown."""
    for path, layer in module.named_modules():
        heads = next((h for n in _HEADS if isinstance(h := getattr(layer, n, None), int)), 0)
        inputs = _input_projections(layer)
        output = _output_projection(module, path)
        if not heads or not inputs or output is None:
            continue
        width = layer.get_submodule(inputs[0]).out_features // (3 if len(inputs) == 1 else 1)
        if width % heads:
            continue
        yield AttentionSite(
            path=path,
            qkv=tuple(f"{path}.{name}" for name in inputs),
            proj=output,
            num_heads=heads,
            head_dim=width // heads,
            per_head=_per_head(module, path),
        )


def _per_head(module: nn.Module, path: str) -> tuple[str, ...]:
    """Return the parameters with an entry a head: of the layer, or of a bias module beside it.

    Transformers' BEiT has its biases there.
    """
    parent = path.rpartition(".")[0]
    beside = getattr(module.get_submodule(parent), "relative_position_bias", None)
    found = [(path, module.get_submodule(path))]
    if isinstance(beside, nn.Module):
        found.append((f"{parent}.relative_position_bias", beside))
    return tuple(
        f"{at}.{name}"
        for at, layer in found
        for name, _ in layer.named_parameters()
        if name.endswith(_PER_HEAD)
    )


def _input_projections(layer: nn.Module) -> tuple[str, ...]:
    if isinstance(getattr(layer, "qkv", None), nn.Linear):
        return ("qkv",)
    for names in _SEPARATE:
        if all(isinstance(getattr(layer, name, None), nn.Linear) for name in names):
            return names
    return ()


def _output_projection(module: nn.Module, path: str) -> str | None:
    """Return the path of the Linear after attention: its child, or in transformers 4 a cousin."""
    parent = path.rpartition(".")[0]
    candidates = [f"{path}.{name}" for name in _PROJECTIONS] + [f"{parent}.output.dense"]
    for candidate in candidates:
        try:
            if isinstance(module.get_submodule(candidate), nn.Linear):
                return candidate
        except AttributeError:
            continue
    return None
