"""The few calls of the CUDA runtime that `build.py` needs, through ctypes: no pycuda, no numpy."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .failure import MEASUREMENT, MISSING, Failure

_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # cudaDeviceAttr
_CAPTURE_RELAXED = 2  # cudaStreamCaptureMode; TensorRT's own sample uses it


class Cuda:
    """The CUDA runtime library; every call is checked."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the runtime.

        Raises:
            Failure: it returns an error.
        """
        code = int(getattr(self._library, name)(*arguments))
        if code:
            describe = self._library.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            text = (describe(code) or b"unknown error").decode(errors="replace")
            raise Failure(f"{name} failed: {text} (CUDA error {code}).", MEASUREMENT)

    def capability(self) -> str:
        """Return the compute capability of device 0, `8.7` for instance."""
        digits = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            value = ctypes.c_int()
            self.call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            digits.append(str(value.value))
        return ".".join(digits)

    def free_bytes(self) -> int:
        """Return the memory that is free on the device now."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def version(self, which: str) -> str:
        """Return the version of the `Runtime` or the newest one the `Driver` supports."""
        value = ctypes.c_int()
        self.call(f"cuda{which}GetVersion", ctypes.byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    @contextmanager
    def stream(self) -> Iterator[ctypes.c_void_p]:
        """Give a stream, destroyed at the end."""
        stream = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(stream))
        try:
            yield stream
        finally:
            self.call("cudaStreamDestroy", stream)

    @contextmanager
    def memory(self, count_bytes: int) -> Iterator[ctypes.c_void_p]:
        """Give device memory, freed at the end."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, count_bytes)))
        try:
            yield pointer
        finally:
            self.call("cudaFree", pointer)

    def poison(self, pointer: ctypes.c_void_p, count_bytes: int) -> None:
        """Fill memory with ones, which is NaN in every float: what is not written shows."""
        self.call("cudaMemset", pointer, 0xFF, ctypes.c_size_t(count_bytes))

    def upload(self, pointer: ctypes.c_void_p, data: bytes) -> None:
        """Copy bytes to the device."""
        self.call("cudaMemcpy", pointer, data, ctypes.c_size_t(len(data)), _TO_DEVICE)

    def download(self, pointer: ctypes.c_void_p, count_bytes: int) -> bytes:
        """Return bytes from the device."""
        target = ctypes.create_string_buffer(count_bytes)
        self.call("cudaMemcpy", target, pointer, ctypes.c_size_t(count_bytes), _TO_HOST)
        return target.raw

    def synchronize(self, stream: ctypes.c_void_p) -> None:
        """Wait until all work of the stream is done."""
        self.call("cudaStreamSynchronize", stream)

    @contextmanager
    def stopwatch(self, stream: ctypes.c_void_p) -> Iterator[Callable[[Callable[[], None]], float]]:
        """Give a function that returns the milliseconds that work takes on the device."""
        start, end = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cudaEventCreate", ctypes.byref(start))
        self.call("cudaEventCreate", ctypes.byref(end))

        def measure_ms(work: Callable[[], None]) -> float:
            self.call("cudaEventRecord", start, stream)
            work()
            self.call("cudaEventRecord", end, stream)
            self.call("cudaEventSynchronize", end)
            elapsed = ctypes.c_float()
            self.call("cudaEventElapsedTime", ctypes.byref(elapsed), start, end)
            return elapsed.value

        try:
            yield measure_ms
        finally:
            self.call("cudaEventDestroy", start)
            self.call("cudaEventDestroy", end)

    @contextmanager
    def graph(
        self, stream: ctypes.c_void_p, work: Callable[[], None]
    ) -> Iterator[Callable[[], None]]:
        """Give a function that replays `work`, captured once as a CUDA graph.

        Raises:
            Failure: the work cannot be captured.
        """
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cudaStreamBeginCapture", stream, _CAPTURE_RELAXED)
        try:
            work()
        finally:  # a stream left capturing would refuse everything that follows
            self.call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        # With flags: the plain name has other arguments in CUDA 11 than in 12.
        self.call(
            "cudaGraphInstantiateWithFlags",
            ctypes.byref(executable),
            graph,
            ctypes.c_ulonglong(0),
        )
        try:
            yield lambda: self.call("cudaGraphLaunch", executable, stream)
        finally:
            self.call("cudaGraphExecDestroy", executable)
            self.call("cudaGraphDestroy", graph)


def load_cuda() -> Cuda:
    """Return the CUDA runtime of this machine, with a device.

    Raises:
        Failure: there is no libcudart that reaches a device.
    """
    wheels = [
        str(path)
        for folder in sys.path
        if folder
        for path in sorted(Path(folder).glob("nvidia/*/lib/libcudart.so*"))
    ]
    reason = "libcudart is not found"
    for name in (*_NAMES, "/usr/local/cuda/lib64/libcudart.so", *wheels):
        try:
            cuda = Cuda(ctypes.CDLL(name))
            count = ctypes.c_int()
            cuda.call("cudaGetDeviceCount", ctypes.byref(count))
        except OSError:
            continue
        except Failure as failure:  # another one may fit the driver
            reason = str(failure).rstrip(".")
            continue
        if count.value > 0:
            return cuda
        reason = f"{name} finds no device"
    raise Failure(
        f"no NVIDIA GPU, or no CUDA runtime that reaches it ({reason}). On a Jetson: sudo apt "
        "install nvidia-jetpack. On x86: install NVIDIA's driver; pip install tensorrt brings the "
        "rest.",
        MISSING,
    )


def gpu_name() -> str | None:
    """Return the name of device 0 from the driver, None where it does not say."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    name, device = ctypes.create_string_buffer(256), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetName(name, 256, device):
        return None
    return name.value.decode(errors="replace")
