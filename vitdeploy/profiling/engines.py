"""A `Source` opened in its engine, on the device and with the threads and streams asked for."""

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.errors import ExportError, UnsupportedError
from vitdeploy.openvino_core import openvino_core
from vitdeploy.profiling.subjects import Source
from vitdeploy.runner import Feeds, Runner

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True)
class Setup:
    """How an engine is opened."""

    device: str = "cpu"
    threads: int | None = None
    """Of all streams together; the engine's own choice where None."""
    streams: int = 1


@dataclass(frozen=True)
class Opened:
    """An engine that can run."""

    engine: str
    """Who runs it, with version."""
    threads: int | None
    requests: tuple[Callable[[Feeds], object], ...]
    """One a stream; each may be called while the others run."""
    stack: ExitStack

    def close(self) -> None:
        """Free the engine."""
        self.stack.close()


def require_device(device: str) -> None:
    """Return where the device can be used from this Python.

    Raises:
        UnsupportedError: a driver, a package or the device itself is missing; names it.
    """
    if device in _PROVIDERS:
        import onnxruntime as ort

        found = ort.get_available_providers()
        if _PROVIDERS[device] not in found:
            raise UnsupportedError(
                f"--device {device} needs ONNX Runtime's {_PROVIDERS[device]}, and this one has "
                f"{', '.join(found)}. In an environment for NVIDIA GPUs: pip uninstall "
                "onnxruntime; pip install onnxruntime-gpu."
            )
    elif device in ("gpu", "npu"):
        import openvino as ov

        found = list(openvino_core().available_devices)
        if not any(name.split(".")[0] == device.upper() for name in found):
            raise UnsupportedError(
                f"--device {device} needs OpenVINO's {device.upper()}, and OpenVINO "
                f"{ov.__version__.split('-')[0]} finds {', '.join(found)} here. Install Intel's "
                f"driver ({'compute-runtime' if device == 'gpu' else 'linux-npu-driver'}) and see "
                "that your user may open /dev/dri or /dev/accel."
            )


def import_engine(source: Source) -> None:
    """Import what opening the source needs, so that loading it does not count that."""
    modules = {"onnxruntime": "onnx", "openvino": "openvino", "target": "tensorrt"}
    if source.engine == "torch":
        importlib.import_module("vitdeploy.models")
    else:
        importlib.import_module(f"vitdeploy.targets.{modules[source.engine]}")


def open_engine(source: Source, setup: Setup) -> Opened:
    """Return the source in its engine.

    Raises:
        ExportError: the engine cannot load it.
        UnsupportedError: the engine runs one call at a time and `setup.streams` is more.
    """
    openers = {"onnxruntime": _open_ort, "openvino": _open_openvino, "torch": _open_torch}
    return openers.get(source.engine, _open_target)(source, setup)


def _opened(runner: Runner, setup: Setup, threads: int | None) -> Opened:
    """Return an engine whose one runner may be called by several threads at once."""
    stack = ExitStack()
    stack.enter_context(runner)
    return Opened(runner.engine, threads, (runner,) * setup.streams, stack)


def _open_ort(source: Source, setup: Setup) -> Opened:
    """A session may be run by many threads; each takes a share of its pool."""
    from vitdeploy.targets.onnx import OrtRunner

    assert source.path is not None
    if setup.device != "cpu":
        return _opened(_ProviderRunner(source.path, _PROVIDERS[setup.device]), setup, None)
    threads = setup.threads
    if setup.streams > 1:
        import psutil

        total = threads or psutil.cpu_count(logical=False) or 1
        # The thread that calls computes too, so this many are busy at once.
        runner = OrtRunner(source.path, max(1, total // setup.streams), source.settings)
        return _opened(runner, setup, total)
    runner = OrtRunner(source.path, threads, source.settings)
    return _opened(runner, setup, runner.threads)


def _open_openvino(source: Source, setup: Setup) -> Opened:
    from vitdeploy.targets.openvino import OpenVinoRunner

    assert source.path is not None
    settings = dict(source.settings)
    if setup.streams > 1:
        settings["NUM_STREAMS"] = setup.streams
        settings["PERFORMANCE_HINT"] = "THROUGHPUT"
    first = OpenVinoRunner(source.path, setup.threads, settings, setup.device.upper())
    stack = ExitStack()
    stack.enter_context(first)
    others = [stack.enter_context(first.beside()) for _ in range(setup.streams - 1)]
    threads = first.threads if setup.device == "cpu" else None
    return Opened(first.engine, threads, (first, *others), stack)


def _open_torch(source: Source, setup: Setup) -> Opened:
    import torch

    from vitdeploy.models import load
    from vitdeploy.runner import TorchRunner

    assert source.model is not None
    stack = ExitStack()
    before = torch.get_num_threads()
    threads = setup.threads or before
    torch.set_num_threads(max(1, threads // setup.streams))
    stack.callback(torch.set_num_threads, before)
    part = next(part for part in load(source.model).parts if part.name == source.part)
    runner = stack.enter_context(TorchRunner(part, threads))
    return Opened(runner.engine, threads, (runner,) * setup.streams, stack)


def _open_target(source: Source, setup: Setup) -> Opened:
    """An engine that only its target's module opens, TensorRT's for one."""
    from vitdeploy.targets import load_target

    assert source.artifact is not None
    if setup.streams > 1:
        raise UnsupportedError(
            f"'{source.name}' runs one call at a time here; profile it with --streams 1."
        )
    runner = load_target(source.artifact.target).open(source.artifact, setup.threads)
    return _opened(runner, setup, runner.threads)


class _ProviderRunner:
    """ONNX Runtime on a GPU's provider; inputs and outputs are copied from and to the host."""

    def __init__(self, path: Path, provider: str) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise ExportError(
                f"ONNX Runtime {ort.__version__} cannot load '{path.name}' on {provider}: {reason}"
            ) from error
        if self._session.get_providers()[0] != provider:  # it falls back without a word
            raise UnsupportedError(
                f"ONNX Runtime {ort.__version__} has {provider} but cannot start it, and would run "
                f"'{path.name}' on the CPU. Its CUDA, cuDNN or TensorRT libraries are missing; "
                "`python -c 'import onnxruntime; onnxruntime.preload_dlls()'` names them."
            )
        self.engine = f"onnxruntime {ort.__version__} {provider.removesuffix('ExecutionProvider')}"
        self.threads = 1
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, feeds: Feeds) -> dict[str, Any]:
        """Return all outputs by name."""
        return dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))

    def __enter__(self) -> "_ProviderRunner":
        return self

    def __exit__(self, *_: object) -> None:
        del self._session
