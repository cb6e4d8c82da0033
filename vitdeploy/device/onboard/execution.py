"""Running an engine: golden outputs, latency by CUDA events, time by layer.

Variables that hold TensorRT's objects are named after them (see `engine`). Nothing here decides
whether an engine is good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from .cuda import Cuda
from .failure import MEASUREMENT, Failure
from .tensors import DTYPES_BY_TENSORRT, converted, size_bytes

WARM_UP_SECONDS = 0.5
TIMED_SECONDS = 3.0
MOST_SECONDS = 60.0
LEAST_SAMPLES = 100  # below, there is no p99
_PROFILED_RUNS = 20


@dataclass(frozen=True)
class HostTensor:
    """A tensor in the host's memory: raw little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class BoundEngine:
    """An engine with its inputs on the device and room for its outputs."""

    context: Any
    stream: Any
    cuda: Cuda
    outputs: Mapping[str, tuple[str, tuple[int, ...], Any]]
    """dtype, shape and device pointer by name."""

    def enqueue(self) -> None:
        """Start one inference on the stream.

        Raises:
            Failure: TensorRT refuses it.
        """
        context = self.context
        if not context.execute_async_v3(self.stream.value or 0):
            raise Failure("TensorRT could not run the engine it built.", MEASUREMENT)

    def run(self) -> dict[str, HostTensor]:
        """Return the outputs of one inference."""
        self.enqueue()
        self.cuda.synchronize(self.stream)
        return {
            name: HostTensor(dtype, shape, self.cuda.download(pointer, size_bytes(dtype, shape)))
            for name, (dtype, shape, pointer) in self.outputs.items()
        }


@contextmanager
def bound_engine(
    trt: Any, cuda: Cuda, engine: Any, feeds: Mapping[str, HostTensor]
) -> Iterator[BoundEngine]:
    """Give the engine with `feeds` on the device; all memory is freed at the end.

    Raises:
        Failure: the engine has other inputs, or takes none of this shape.
    """
    with ExitStack() as stack:
        context = engine.create_execution_context()
        if context is None:
            raise Failure("the engine got no execution context: out of memory.", MEASUREMENT)
        stream = stack.enter_context(cuda.stream())
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        outputs = []
        for name in names:
            if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT:
                outputs.append(name)
                continue
            if name not in feeds:
                raise Failure(
                    f"the engine has the input '{name}'; the package has {', '.join(feeds)}.",
                    MEASUREMENT,
                )
            feed = feeds[name]
            if not context.set_input_shape(name, feed.shape):
                raise Failure(f"the engine refuses {feed.shape} for '{name}'.", MEASUREMENT)
            data = converted(feed.data, feed.dtype, _dtype(engine, name))
            pointer = stack.enter_context(cuda.memory(len(data)))
            cuda.upload(pointer, data)
            _place(context, name, pointer)
        room = {}
        for name in outputs:
            dtype, shape = _dtype(engine, name), tuple(context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise Failure(f"the shape {shape} of '{name}' depends on data.", MEASUREMENT)
            pointer = stack.enter_context(cuda.memory(size_bytes(dtype, shape)))
            # The memory may still hold an earlier engine's outputs, and those were right.
            cuda.poison(pointer, size_bytes(dtype, shape))
            _place(context, name, pointer)
            room[name] = (dtype, shape, pointer)
        yield BoundEngine(context, stream, cuda, room)


def measure_latency(bound: BoundEngine) -> list[dict[str, Any]]:
    """Return the device's time for one inference, without and with a CUDA graph."""
    rows = []
    with bound.cuda.stopwatch(bound.stream) as measure_ms:
        rows.append(
            latency_row("cuda_events", _samples(measure_ms, bound.enqueue), cuda_graph=False)
        )
        try:
            with bound.cuda.graph(bound.stream, bound.enqueue) as replay:
                rows.append(
                    latency_row("cuda_events", _samples(measure_ms, replay), cuda_graph=True)
                )
        except Failure as failure:  # some engines cannot be captured; that is no fault of theirs
            rows.append(missing_latency_row("cuda_events", str(failure), cuda_graph=True))
    return rows


def latency_row(method: str, samples_ms: Sequence[float], *, cuda_graph: bool) -> dict[str, Any]:
    """Return percentiles of GPU compute time in milliseconds; too few samples have no p99."""
    ordered = sorted(samples_ms)
    count = len(ordered)

    def percentile(share: float) -> float:
        return ordered[min(count - 1, int(share * count))]

    enough = count >= LEAST_SAMPLES
    return {
        "method": method,
        "cuda_graph": cuda_graph,
        "p50_ms": percentile(0.50),
        "p90_ms": percentile(0.90),
        "p99_ms": percentile(0.99) if enough else None,
        "p99_ms_reason": None if enough else f"{count} samples; {LEAST_SAMPLES} are needed",
        "mean_ms": sum(ordered) / count,
        "samples": count,
    }


def missing_latency_row(method: str, reason: str, *, cuda_graph: bool) -> dict[str, Any]:
    """Return a row without figures, and why."""
    return {"method": method, "cuda_graph": cuda_graph, "p50_ms": None, "p50_ms_reason": reason}


def measure_layers(trt: Any, bound: BoundEngine) -> list[tuple[str, float]]:
    """Return the mean milliseconds of every layer, in the order they run."""

    class LayerTimes(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.total_ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.total_ms[layer_name] = self.total_ms.get(layer_name, 0.0) + ms

    times = LayerTimes()
    context = bound.context
    context.profiler = times
    for _ in range(_PROFILED_RUNS):
        bound.enqueue()
        bound.cuda.synchronize(bound.stream)
    return [(name, total / _PROFILED_RUNS) for name, total in times.total_ms.items()]


def _samples(
    measure_ms: Callable[[Callable[[], None]], float], work: Callable[[], None]
) -> list[float]:
    end = time.monotonic() + WARM_UP_SECONDS
    while time.monotonic() < end:
        measure_ms(work)
    samples: list[float] = []
    start = time.monotonic()
    seconds = 0.0
    while seconds < TIMED_SECONDS or (len(samples) < LEAST_SAMPLES and seconds < MOST_SECONDS):
        samples.append(measure_ms(work))
        seconds = time.monotonic() - start
    return samples


def _place(context: Any, name: str, pointer: Any) -> None:
    if not context.set_tensor_address(name, pointer.value):
        raise Failure(f"TensorRT takes no device memory for '{name}'.", MEASUREMENT)


def _dtype(engine: Any, name: str) -> str:
    found = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
    if found not in DTYPES_BY_TENSORRT:
        raise Failure(f"'{name}' of the engine is {found}, which is not supported.", MEASUREMENT)
    return DTYPES_BY_TENSORRT[found]
