"""A stand-in for libcudart: "device" memory is the host's, events give the time a fake engine says.

`run.py` puts it where `ctypes.CDLL` looks. STANDIN_CUDA=missing hides it, `no_device` has no GPU,
`no_graphs` refuses to capture; STANDIN_FREE_MIB is the free memory.
"""

import ctypes
import os


class _State:
    """What is allocated, and the milliseconds that the last enqueued work takes."""

    def __init__(self) -> None:
        self.buffers = {}
        self.work_ms = 1.0
        self.mode = os.environ.get("STANDIN_CUDA", "")


state = _State()


class Library:
    """Its functions take what build.py hands to ctypes, and return CUDA's error codes."""

    class _Function:
        def __init__(self, call) -> None:
            self.call = call

        def __call__(self, *arguments):
            return self.call(*arguments)

    def __init__(self) -> None:
        self.cudaGetErrorString = self._Function(lambda code: b"stand-in error %d" % code)

    def cudaGetDeviceCount(self, count) -> int:
        count._obj.value = 0 if state.mode == "no_device" else 1
        return 0

    def cudaDeviceGetAttribute(self, value, attribute, device) -> int:
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def cudaMemGetInfo(self, free, total) -> int:
        free._obj.value = int(os.environ.get("STANDIN_FREE_MIB", "2000")) << 20
        total._obj.value = 8 << 30
        return 0

    def cudaRuntimeGetVersion(self, value) -> int:
        value._obj.value = 12060
        return 0

    cudaDriverGetVersion = cudaRuntimeGetVersion

    def cudaMalloc(self, pointer, size) -> int:
        buffer = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(buffer)
        state.buffers[pointer._obj.value] = buffer
        return 0

    def cudaFree(self, pointer) -> int:
        del state.buffers[pointer.value]
        return 0

    def cudaMemcpy(self, target, source, size, kind) -> int:
        ctypes.memmove(target, source, size.value)
        return 0

    def cudaMemset(self, pointer, value, size) -> int:
        ctypes.memset(pointer.value, value, size.value)
        return 0

    def cudaStreamCreate(self, stream) -> int:
        stream._obj.value = 77
        return 0

    def cudaStreamBeginCapture(self, stream, mode) -> int:
        return 900 if state.mode == "no_graphs" else 0

    def cudaEventElapsedTime(self, elapsed, start, end) -> int:
        elapsed._obj.value = state.work_ms
        return 0

    def __getattr__(self, name: str):
        known = (
            "cudaStreamDestroy cudaStreamSynchronize cudaStreamEndCapture cudaEventCreate "
            "cudaEventRecord cudaEventSynchronize cudaEventDestroy cudaGraphInstantiateWithFlags "
            "cudaGraphLaunch cudaGraphExecDestroy cudaGraphDestroy"
        )
        if name not in known.split():
            raise AttributeError(name)
        return lambda *arguments: 0
