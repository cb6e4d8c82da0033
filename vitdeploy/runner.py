"""The one contract behind which every engine runs, the FP32 reference included."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np

Feeds = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]


class Runner(Protocol):
    """Runs one part; a context manager that frees the engine on exit."""

    engine: str
    """Who runs it, with version: `onnxruntime 1.23.0`."""
    threads: int

    def __call__(self, feeds: Feeds) -> Outputs:
        """Return the outputs by name as float32 arrays; synchronised on return."""
        ...

    def __enter__(self) -> "Runner": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class TorchRunner:
    """Runs a part's torch module as it was loaded: the reference of all comparisons."""

    def __init__(self, part: Any, threads: int | None = None) -> None:
        import torch

        self._part = part
        self._torch = torch
        self.engine = f"torch {torch.__version__.split('+')[0]}"
        self.threads = threads or torch.get_num_threads()

    def __call__(self, feeds: Feeds) -> Outputs:
        """Return the module's outputs under the part's output names."""
        names = [tensor.name for tensor in self._part.inputs]
        arguments = [self._torch.from_numpy(np.ascontiguousarray(feeds[n])) for n in names]
        with self._torch.inference_mode():
            result = self._part.module(*arguments)
        results = result if isinstance(result, tuple | list) else (result,)
        return {
            tensor.name: value.numpy()
            for tensor, value in zip(self._part.outputs, results, strict=True)
        }

    def __enter__(self) -> "TorchRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self._part = None
