"""What a model costs by image size: tokens, work, attention's share of it, memory.

Everything follows from shapes: the model is built without weights and run on torch's meta
device, so that giants need no memory. Nothing is measured.
"""

import dataclasses
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitdeploy.errors import UsageError
from vitdeploy.models.spec import LoadedModel, LoadOptions
from vitdeploy.recipe import is_onnx_source

if TYPE_CHECKING:
    from collections.abc import Callable

FLOAT_BYTES = 4
_LARGEST_SIZE = 8192
_GROWING = 1.05
"""Attention's share of a model of windows stays, save for the whole windows that size rounds to."""


@dataclass(frozen=True)
class Cost:
    """One image of one size through a model, in FP32."""

    image_size: int
    """Pixels of the square input."""
    tokens: int | None
    """Of the longest softmax row; None without attention."""
    gmacs: float
    """10^9 multiply-accumulates: convolutions and matrix products, attention too."""
    attention_percent: float
    """Share of these in products of two activations (query with key, weights with value), which
    grow with the square of the tokens that attend to one another."""
    weight_bytes: int
    activation_bytes: int
    """Most that is alive at once, where attention's weights are written out and each tensor is
    freed after its last use; input included, weights not."""
    largest_tensor_bytes: int
    """Of the largest weight."""


@dataclass(frozen=True)
class Scaling:
    """A model at several image sizes."""

    rows: tuple[Cost, ...]
    attention_dominates_at: int | None
    """About the pixels from which attention is more than half of the work; None where its share
    does not grow (windows, convolutions), or not before 8192 pixels."""


def scaling_of(options: LoadOptions, sizes: Sequence[int]) -> Scaling:
    """Return what the model that `options` name costs at `sizes`, in pixels.

    Raises:
        ModelError: no such model, or it takes no images of one of the sizes.
        UsageError: an ONNX file, which has one size.
        UnsupportedError: a model of several parts.
    """
    require_structure(options)
    rows = tuple(_cost_at(options, size) for size in sizes)
    return Scaling(rows, _dominating_size(options))


def require_structure(options: LoadOptions) -> None:
    """Raise where there is no torch model to be built without weights.

    Raises:
        UsageError: an ONNX file.
    """
    if is_onnx_source(options.source):
        raise UsageError(
            f"'{options.source}' is an ONNX file, made for one image size, with its weights. Name "
            "the model it was exported from; `vitdeploy inspect` describes the file itself."
        )


def cost_of(loaded: LoadedModel) -> Cost:
    """Return what one image of the model's own size costs; weights are not read.

    Of a model with a text tower, its weights count and its work does not.

    Raises:
        ModelError: the model does not run at that size.
    """
    from vitdeploy.models.trace import run_shapes

    part = loaded.parts[0]
    size = loaded.spec.preprocess.size[0]
    counted: _Counting = run_shapes(part.module, size, _counted)
    parameters = [p for other in loaded.parts for p in other.module.parameters()]
    return Cost(
        image_size=size,
        tokens=max((site.tokens for site in loaded.attention if site.tokens), default=None),
        gmacs=counted.macs / 1e9,
        attention_percent=100.0 * counted.attention_macs / max(counted.macs, 1),
        weight_bytes=FLOAT_BYTES * sum(parameter.numel() for parameter in parameters),
        activation_bytes=counted.peak_bytes,
        largest_tensor_bytes=FLOAT_BYTES * max((p.numel() for p in parameters), default=0),
    )


def _cost_at(options: LoadOptions, size: int | None) -> Cost:
    from vitdeploy.models import load

    return cost_of(load(dataclasses.replace(options, image_size=size, weightless=True)))


def _dominating_size(options: LoadOptions) -> int | None:
    """Return about where attention's share passes one half, between two doublings of the size.

    There the ratio of attention to the rest is taken as a power of the size, which it is for
    plain attention (2) but for the class token.
    """
    below = _cost_at(options, None)
    if below.attention_percent >= 50.0:
        return below.image_size
    while below.image_size * 2 <= _LARGEST_SIZE:
        above = _cost_at(options, below.image_size * 2)
        if above.attention_percent <= below.attention_percent * _GROWING:
            return None
        if above.attention_percent >= 50.0:
            low, high = math.log(_ratio(below)), math.log(_ratio(above))
            return round(below.image_size * 2 ** (low / (low - high)))
        below = above
    return None


def _ratio(cost: Cost) -> float:
    """Return attention's work over all other."""
    return cost.attention_percent / max(100.0 - cost.attention_percent, 1e-9)


def _counted(module: Any, pixels: torch.Tensor) -> "_Counting":
    counting = _Counting(module)
    with counting:
        counting.hold(pixels)
        module(pixels)
    return counting


class _Counting(TorchDispatchMode):  # type: ignore[misc]
    """Counts multiply-accumulates and the bytes alive while a module runs."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        tensors = [*module.parameters(), *module.buffers()]
        self._weights = {_storage(tensor) for tensor in tensors}
        self._holders: dict[int, int] = {}
        self._alive = 0
        self.macs = 0
        self.attention_macs = 0
        self.peak_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if count is not None:
            macs = int(count(*args, **(kwargs or {}), out_val=result)) // 2
            self.macs += macs
            operands = [value for value in args if isinstance(value, torch.Tensor)]
            if not any(_storage(value) in self._weights for value in operands):
                self.attention_macs += macs
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.hold(value)
        return result

    def hold(self, tensor: torch.Tensor) -> None:
        """Count the memory of `tensor` as alive until the last tensor in it goes."""
        key = _storage(tensor)
        if key in self._weights:
            return
        if key not in self._holders:
            self._alive += tensor.untyped_storage().nbytes()
            self.peak_bytes = max(self.peak_bytes, self._alive)
        self._holders[key] = self._holders.get(key, 0) + 1
        weakref.finalize(tensor, self._drop, key, tensor.untyped_storage().nbytes())

    def _drop(self, key: int, size_bytes: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._alive -= size_bytes


def _storage(tensor: torch.Tensor) -> int:
    """Return what tells the memory of a tensor from that of others."""
    return int(tensor.untyped_storage()._cdata)
