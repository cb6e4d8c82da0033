"""Artefacts on the engines of this machine's Python: onnxruntime and openvino."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitdeploy.openvino_core import openvino_core

from .cache import DeviceError


class Engine:
    """One artefact, loaded; called with feeds by name it returns outputs by name."""

    def __init__(
        self,
        run: Callable[[Mapping[str, Any]], dict[str, Any]],
        engine: str,
        threads: int,
        load_ms: float,
    ) -> None:
        self._run = run
        self.engine = engine
        self.threads = threads
        self.load_ms = load_ms

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs by name.

        Raises:
            DeviceError: the engine refuses the feeds.
        """
        try:
            return self._run(feeds)
        except Exception as error:
            shapes = {name: tuple(value.shape) for name, value in feeds.items()}
            raise DeviceError(
                "data", f"{self.engine} cannot run on {shapes}: {_line(error)}"
            ) from error


def import_engine(target: str) -> None:
    """Import what runs artefacts of `target`, whose time and memory are nobody's.

    Raises:
        DeviceError: it is not installed here.
    """
    name = {"onnx": "onnxruntime", "openvino": "openvino"}[target]
    try:
        importlib.import_module("numpy")
        importlib.import_module(name)
    except ImportError as error:
        raise DeviceError(
            "missing",
            f"its Python has no module '{error.name}'. Install it there: python3 -m pip install "
            f"numpy {name}; or name a Python that has it with --remote-python.",
        ) from error


def open_engine(
    target: str, path: Path, threads: int | None, settings: Mapping[str, Any]
) -> Engine:
    """Return an artefact of `target`, loaded, with the same settings as `vitdeploy` gives it.

    Raises:
        DeviceError: the engine refuses the file.
    """
    opener = {"onnx": _open_onnx, "openvino": _open_openvino}[target]
    try:
        return opener(path, threads, settings)
    except Exception as error:
        raise DeviceError("engine", f"cannot load '{path.name}': {_line(error)}") from error


def _open_onnx(path: Path, threads: int | None, settings: Mapping[str, Any]) -> Engine:
    import onnxruntime as ort

    before = time.perf_counter()

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for key, value in settings.items():
        options.add_session_config_entry(key, str(value))
    session = ort.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    inputs = {node.name for node in session.get_inputs()}

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {name: value for name, value in feeds.items() if name in inputs}
        return dict(zip(names, session.run(names, wanted)))  # noqa: B905 - Python 3.8

    load_ms = 1000.0 * (time.perf_counter() - before)
    return Engine(run, f"onnxruntime {ort.__version__}", threads or _physical_cores(), load_ms)


def _open_openvino(path: Path, threads: int | None, settings: Mapping[str, Any]) -> Engine:
    import numpy as np
    import openvino as ov

    before = time.perf_counter()

    core = openvino_core()
    config = {"PERFORMANCE_HINT": "LATENCY", **settings}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(core.read_model(str(path)), "CPU", config)
    request = compiled.create_infer_request()
    names = [port.get_any_name() for port in compiled.outputs]
    inputs = {port.get_any_name() for port in compiled.inputs}

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        results = request.infer({name: v for name, v in feeds.items() if name in inputs})
        values = (np.array(value) for value in results.to_tuple())
        return dict(zip(names, values))  # noqa: B905 - Python 3.8

    version = ov.__version__.split("-")[0]
    used = int(compiled.get_property("INFERENCE_NUM_THREADS"))
    return Engine(run, f"openvino {version}", used, 1000.0 * (time.perf_counter() - before))


def _physical_cores() -> int:
    """Return the cores of this machine, each once however many threads it has."""
    cores = set()
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list"):
        cores.add(path.read_text(encoding="ascii").strip())
    return max(1, len(cores))


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
