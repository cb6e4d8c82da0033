"""Folding patches into a map, for tracing: by a reshape, or by a transposed convolution.

ONNX has an operator for it, Col2Im, which TensorRT does not read (onnx/onnx-tensorrt#934, open) and
OpenVINO 2026.4 does not compile in every graph. Patches that do not overlap are a map in another
order; those that do are added up by a transposed convolution whose kernels copy one element each.
"""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def written_out_folds() -> Iterator[None]:
    """Have `torch.nn.functional.fold` and, of patches side by side, `unfold` written out."""
    import torch

    functional: Any = torch.nn.functional
    fold, unfold = functional.fold, functional.unfold

    def folded(
        x: Any,
        output_size: Any,
        kernel_size: Any,
        dilation: Any = 1,
        padding: Any = 0,
        stride: Any = 1,
    ) -> Any:
        if x.ndim != 3 or _pair(dilation) != (1, 1):
            return fold(x, output_size, kernel_size, dilation, padding, stride)
        return _folded(x, *(_pair(p) for p in (output_size, kernel_size, padding, stride)))

    def unfolded(
        x: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
    ) -> Any:
        rows, columns = kernel = _pair(kernel_size)
        height, width = x.shape[-2:]
        whole = height % rows == 0 and width % columns == 0
        if x.ndim != 4 or (_pair(padding), _pair(stride)) != ((0, 0), kernel) or not whole:
            return unfold(x, kernel_size, dilation, padding, stride)
        channels = x.shape[1]
        x = x.reshape(-1, channels, height // rows, rows, width // columns, columns)
        x = x.permute(0, 1, 3, 5, 2, 4)
        return x.reshape(-1, channels * rows * columns, (height // rows) * (width // columns))

    functional.fold, functional.unfold = folded, unfolded
    try:
        yield
    finally:
        functional.fold, functional.unfold = fold, unfold


_Pair = tuple[int, int]


def _folded(x: Any, size: _Pair, kernel: _Pair, padding: _Pair, stride: _Pair) -> Any:
    """Return the map (N, C, H, W) of patches (N, C * kernel, patches), added where they overlap."""
    import torch

    elements = kernel[0] * kernel[1]
    channels = x.shape[1] // elements
    rows, columns = ((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
    if stride == kernel and padding == (0, 0) and size == (rows * kernel[0], columns * kernel[1]):
        x = x.reshape(-1, channels, *kernel, rows, columns).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(-1, channels, *size)
    one_each = torch.eye(elements, dtype=x.dtype, device=x.device).reshape(elements, 1, *kernel)
    covered = ((rows - 1) * stride[0] + kernel[0], (columns - 1) * stride[1] + kernel[1])
    return torch.nn.functional.conv_transpose2d(
        x.reshape(-1, channels * elements, rows, columns),
        one_each.repeat(channels, 1, 1, 1),
        stride=stride,
        padding=padding,
        output_padding=tuple(size[i] + 2 * padding[i] - covered[i] for i in range(2)),
        groups=channels,
    )


def _pair(value: Any) -> _Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
