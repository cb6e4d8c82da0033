"""Gates on heads, hidden channels and blocks: how a model is masked, and its gradient at them.

A gate multiplies what one head or channel hands on to the projection behind it (arXiv 1905.10650,
equation 1), or what one block adds to the residual stream. At 1 nothing changes; at 0 the model
computes what it computes once the unit is removed. Nothing is removed here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from vitdeploy.compress.prune.units import Kept, Sites


@dataclass
class GateRecord:
    """The gates of the latest forward pass; each (rows, units), with rows in order of images."""

    gates: dict[str, torch.Tensor] = field(default_factory=dict)


@contextmanager
def masked(module: nn.Module, sites: Sites, kept: Kept) -> Iterator[None]:
    """Close the gates of all that `kept` leaves out, while the context lasts."""
    hooks = []
    try:
        for site in sites.attention:
            if site.path in kept.heads:
                mask = _mask(kept.heads[site.path], site.num_heads)
                hooks.append(_gate_input(module.get_submodule(site.proj), _constant(mask)))
        for mlp in sites.mlp:
            if mlp.path in kept.channels:
                mask = _mask(kept.channels[mlp.path], mlp.width)
                hooks.append(_gate_input(module.get_submodule(mlp.output), _constant(mask)))
        for path in kept.removed_blocks:
            hooks.append(_gate_block(module.get_submodule(path), _constant(torch.zeros(1))))
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def recorded_gates(module: nn.Module, sites: Sites) -> Iterator[GateRecord]:
    """Put a gate of 1 on every head, channel and block; the record has those of the last pass."""
    record = GateRecord()

    def fresh(path: str, units: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def make(x: torch.Tensor) -> torch.Tensor:
            gate = torch.ones(len(x), units, dtype=x.dtype, device=x.device, requires_grad=True)
            record.gates[path] = gate
            return gate

        return make

    hooks = [
        *(
            _gate_input(module.get_submodule(site.proj), fresh(site.path, site.num_heads))
            for site in sites.attention
        ),
        *(
            _gate_input(module.get_submodule(site.output), fresh(site.path, site.width))
            for site in sites.mlp
        ),
        *(_gate_block(module.get_submodule(path), fresh(path, 1)) for path in sites.blocks),
    ]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def gradients(
    loss: torch.Tensor, gates: Mapping[str, torch.Tensor], images: int
) -> dict[str, np.ndarray]:
    """Return by path d loss / d gate of each image: (images, units) float64.

    Rows of one image (windows, tokens) are added up; a gate the loss does not depend on has 0.
    """
    found = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
    result = {}
    for (path, gate), gradient in zip(gates.items(), found, strict=True):
        dense = torch.zeros_like(gate) if gradient is None else gradient
        per_image = dense.detach().double().reshape(images, -1, gate.shape[1]).sum(1)
        result[path] = per_image.cpu().numpy()
    return result


def _mask(kept: Sequence[int], units: int) -> torch.Tensor:
    mask = torch.zeros(1, units)
    mask[0, list(kept)] = 1.0
    return mask


def _constant(mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: mask.to(x).reshape(1, -1).expand(len(x), -1)


def _gate_input(layer: nn.Module, gate: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Multiply the input features of `layer`, in equal runs of channels, by a gate per unit."""

    def multiply(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = inputs[0]
        axis = 1 if isinstance(layer, nn.Conv2d) else x.ndim - 1
        units = gate(x)
        spread = units.repeat_interleave(x.shape[axis] // units.shape[1], dim=1)
        shape = [1] * x.ndim
        shape[0], shape[axis] = len(x), x.shape[axis]
        return (x * spread.view(shape), *inputs[1:])

    return layer.register_forward_pre_hook(multiply)


def _gate_block(block: nn.Module, gate: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Multiply what `block` adds to its first input by a gate."""

    def blend(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        x = inputs[0] if inputs else next(iter(named.values()))
        y = output[0] if isinstance(output, tuple) else output
        y = x + gate(x).view(-1, *[1] * (x.ndim - 1)) * (y - x)
        return (y, *output[1:]) if isinstance(output, tuple) else y

    return block.register_forward_hook(blend, with_kwargs=True)
