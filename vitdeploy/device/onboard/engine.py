"""Building an engine with TensorRT's Python API, and loading it; running it is `execution`'s.

`trt` is always the module `tensorrt`, handed in. Variables that hold TensorRT's objects are
named after them (`builder`, `network`, `parser`, `config`, `profile`, `cache`, `runtime`):
a test collects by these names what is used, and checks it against the lists of three versions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contents import InputSpec
from .failure import BUILD, MISSING, Failure
from .versions import BuildPlan

_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class EngineRequest:
    """One engine to build."""

    path: Path
    """The ONNX file; its external data lies beside it."""
    plan: BuildPlan
    inputs: tuple[InputSpec, ...]
    workspace_bytes: int
    timing_cache: bytes
    """What an earlier build measured; empty where there was none."""


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine and what building it cost."""

    data: bytes
    timing_cache: bytes
    build_seconds: float


def message_log(trt: Any) -> Any:
    """Return a TensorRT logger that keeps errors in its list `errors`."""

    class MessageLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return MessageLog()


def build_engine(trt: Any, request: EngineRequest) -> BuiltEngine:
    """Return the engine of one graph.

    Raises:
        Failure: TensorRT does not read the graph, or does not build it.
    """
    log = message_log(trt)
    builder = _created(trt.Builder, log)
    network = builder.create_network(_network_flags(trt, request.plan))
    parser = _parsed(trt, network, log, request.path)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for name in request.plan.builder_flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    cache = _timing_cache(config, request.timing_cache)
    _add_profile(builder, config, request.inputs)
    start = time.monotonic()
    built = builder.build_serialized_network(network, config)
    del parser  # until here: the network's weights lie in it
    if built is None:
        raise Failure(
            f"TensorRT {trt.__version__} does not build '{request.path.name}': "
            f"{_last(log.errors)}. More room may help: --workspace-mib.",
            BUILD,
        )
    return BuiltEngine(
        data=bytes(built),
        timing_cache=bytes(cache.serialize()),
        build_seconds=time.monotonic() - start,
    )


def load_engine(trt: Any, data: bytes, log: Any) -> Any:
    """Return the engine; `log` must outlive it.

    Raises:
        Failure: this machine cannot load it.
    """
    runtime = _created(trt.Runtime, log)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise Failure(
            f"the engine was built but does not load here: {_last(log.errors)}. "
            "Check that NVIDIA's driver fits this TensorRT.",
            BUILD,
        )
    return engine


def _created(kind: Any, log: Any) -> Any:
    """Return TensorRT's object of a kind; its constructor fails where the driver does."""
    try:
        return kind(log)
    except TypeError as error:  # pybind11: the factory function returned nullptr
        raise Failure(
            f"TensorRT does not start: {_last(log.errors)}. Check NVIDIA's driver.", MISSING
        ) from error


def _network_flags(trt: Any, plan: BuildPlan) -> int:
    flags = 0
    for name in plan.network_flags:
        flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        if flag is None:
            raise Failure(
                f"TensorRT {trt.__version__} has no NetworkDefinitionCreationFlag.{name}, which "
                f"'{plan.graph.file}' needs. Export again for this version.",
                BUILD,
            )
        flags |= 1 << int(flag)
    return flags


def _parsed(trt: Any, network: Any, log: Any, path: Path) -> Any:
    """Return the parser that filled the network."""
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(path)):
        return parser
    count = min(parser.num_errors, _SHOWN_ERRORS)
    errors = [" ".join(str(parser.get_error(index)).split()) for index in range(count)]
    raise Failure(
        f"TensorRT {trt.__version__} does not read '{path.name}': "
        f"{'; '.join(errors) or _last(log.errors)}. `vitdeploy lint` names what it refuses.",
        BUILD,
    )


def _timing_cache(config: Any, data: bytes) -> Any:
    """Return the cache that `config` uses: of `data` where it is of this card and version."""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _add_profile(builder: Any, config: Any, inputs: tuple[InputSpec, ...]) -> None:
    """Give every dynamic input its range; a graph of fixed shapes needs none."""
    dynamic = [spec for spec in inputs if spec.is_dynamic]
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for spec in dynamic:
        profile.set_shape(spec.name, spec.minimum, spec.optimum, spec.maximum)
    if config.add_optimization_profile(profile) < 0:
        shown = "; ".join(f"{s.name} {s.minimum} to {s.maximum}" for s in dynamic)
        raise Failure(f"TensorRT refuses the shapes {shown}. Export again.", BUILD)


def _last(errors: list[str]) -> str:
    return " ".join(errors[-1].split()) if errors else "no reason given"
