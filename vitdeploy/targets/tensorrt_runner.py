"""Running what the TensorRT targets make: on a GPU with TensorRT, or ONNX Runtime standing in.

The GPU part has been run on no machine yet (tests marked `gpu`); it builds, loads and talks to
CUDA with the code that ships to devices (`vitdeploy.device.onboard`).
"""

import importlib
import importlib.util
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.bundle import TensorInfo
from vitdeploy.device.onboard.contents import GraphSpec, InputSpec
from vitdeploy.device.onboard.cuda import Cuda, load_cuda
from vitdeploy.device.onboard.engine import EngineRequest, build_engine, load_engine, message_log
from vitdeploy.device.onboard.failure import Failure
from vitdeploy.device.onboard.tensors import DTYPES_BY_TENSORRT
from vitdeploy.device.onboard.versions import plan_builds, version_from_text
from vitdeploy.errors import DataError, ExportError
from vitdeploy.runner import Feeds, Outputs
from vitdeploy.targets import tensor_infos
from vitdeploy.targets.onnx import OrtRunner

BATCH_PROFILE = (1, 1, 32)
"""Least, best and largest batch of an engine with a dynamic batch."""
COUNT_PROFILE = (1, 2, 32)
"""The same of any other dynamic dimension, such as a number of points."""
_SHARE_OF_MEMORY = 0.5


def missing_reason(library: str) -> str | None:
    """Return why `library` (`tensorrt`, `tensorrt_rtx`) runs nothing here; None where it does."""
    if importlib.util.find_spec(library) is None:
        return "no TensorRT on this machine"
    try:
        load_cuda()
    except Failure:
        return "no NVIDIA GPU on this machine"
    return None


def stand_in_runner(path: Path, threads: int | None, target: str) -> OrtRunner:
    """Return ONNX Runtime on TensorRT's graph, under a name that says so.

    Raises:
        ExportError: ONNX Runtime refuses the file.
    """
    runner = OrtRunner(path, threads)
    built = "built on the device" if target == "trt" else "built for a GPU"
    runner.engine = f"{runner.engine} (TensorRT's graph; the engine is {built})"
    return runner


def input_specs(inputs: tuple[TensorInfo, ...]) -> tuple[InputSpec, ...]:
    """Return the inputs with a range for every dynamic dimension."""
    return tuple(
        InputSpec(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            *(
                tuple(_bound(size, axis, which) for axis, size in enumerate(tensor.shape))
                for which in range(3)
            ),
        )
        for tensor in inputs
    )


def _bound(size: int | str, axis: int, which: int) -> int:
    if isinstance(size, int):
        return size
    return (BATCH_PROFILE if axis == 0 else COUNT_PROFILE)[which]


def gpu_runner(library: str, path: Path) -> "GpuRunner":
    """Return a runner of an engine, which is built first where `path` is an ONNX file.

    Raises:
        ExportError: TensorRT does not read, build or load it.
    """
    trt, cuda = importlib.import_module(library), load_cuda()
    try:
        return GpuRunner(trt, cuda, _plan(trt, cuda, path))
    except Failure as error:
        raise ExportError(str(error)) from error


def _plan(trt: Any, cuda: Cuda, path: Path) -> bytes:
    if path.suffix != ".onnx":
        return path.read_bytes()
    typing = "weak" if path.name.endswith(".weak.onnx") else "strong"
    graph = GraphSpec("mixed", typing, path.name, "", "8.6", {})
    plan, *_ = plan_builds((graph,), "mixed", version_from_text(trt.__version__))
    inputs = input_specs(tensor_infos(ir.load(path).graph.inputs))
    room = int(cuda.free_bytes() * _SHARE_OF_MEMORY)
    return build_engine(trt, EngineRequest(path, plan, inputs, room, b"")).data


class GpuRunner:
    """Runs a serialised engine; buffers are kept while the shapes stay the same."""

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes) -> None:
        self._trt, self._cuda = trt, cuda
        self._log = message_log(trt)
        self._engine = load_engine(trt, plan, self._log)
        self._context = self._engine.create_execution_context()
        self._lasting = ExitStack()
        self._stream = self._lasting.enter_context(cuda.stream())
        self._buffers = ExitStack()
        self._pointers: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.engine = f"{trt.__name__} {trt.__version__}"
        self.threads = 0
        names = [self._engine.get_tensor_name(n) for n in range(self._engine.num_io_tensors)]
        is_input = trt.TensorIOMode.INPUT
        self._inputs = [n for n in names if self._engine.get_tensor_mode(n) == is_input]
        self._outputs = [n for n in names if n not in self._inputs]

    def __call__(self, feeds: Feeds) -> Outputs:
        """Return all outputs by name.

        Raises:
            DataError: the feeds do not fit the engine's inputs.
        """
        arrays = {
            name: np.ascontiguousarray(feeds[name], self._dtype(name)) for name in self._inputs
        }
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != self._shapes:
            self._allocate(arrays)
        for name, array in arrays.items():
            self._cuda.upload(self._pointers[name], array.tobytes())
        if not self._context.execute_async_v3(self._stream.value or 0):
            raise DataError(f"{self.engine} cannot run the engine on {shapes}.")
        self._cuda.synchronize(self._stream)
        return {name: self._download(name) for name in self._outputs}

    def _allocate(self, arrays: Feeds) -> None:
        self._buffers.close()
        self._shapes = {}
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, array.shape):
                raise DataError(f"{self.engine} cannot run the engine on {name} {array.shape}.")
        for name in (*self._inputs, *self._outputs):
            count = int(np.prod(self._context.get_tensor_shape(name)))
            pointer = self._cuda.memory(count * self._dtype(name).itemsize)
            self._pointers[name] = self._buffers.enter_context(pointer)
            self._context.set_tensor_address(name, self._pointers[name].value)
        self._shapes = {name: array.shape for name, array in arrays.items()}

    def _download(self, name: str) -> np.ndarray:
        shape, dtype = tuple(self._context.get_tensor_shape(name)), self._dtype(name)
        data = self._cuda.download(self._pointers[name], int(np.prod(shape)) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(DTYPES_BY_TENSORRT[self._engine.get_tensor_dtype(name).name])

    def __enter__(self) -> "GpuRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self._buffers.close()
        self._lasting.close()
        del self._context, self._engine
