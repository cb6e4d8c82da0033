"""What this machine reaches at best: matrix products by type, and memory; measured once, kept.

Products run on OpenVINO and on PyTorch, each with its best kernels, and the better one counts. The
file is named by the processor, the threads and the engines' versions.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from vitdeploy.cpu import cpu_has, cpu_name
from vitdeploy.environment import package_versions
from vitdeploy.openvino_core import openvino_core
from vitdeploy.report.profile import Ceilings

_SHAPES = ((256, 768, 768), (512, 1024, 1024), (2048, 1024, 2048))
"""Rows, inner size, columns: what ViTs of a few hundred tokens and more multiply. The small one is
over before a busy machine takes the CPU away."""
_SECONDS = 0.5
"""Of each product; the fastest run counts."""
_LEAST_RUNS = 5
_COPIED_BYTES = 256 * 2**20
"""Larger than caches."""
_FORMAT = 2
"""Of the file; another one is measured again."""
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


def ceilings_of_machine(threads: int, folder: Path | None = None) -> Ceilings:
    """Return the ceilings for `threads` threads, measured now where no file has them.

    Args:
        threads: that engines use.
        folder: where the files are; the user's cache by default.
    """
    path = ceilings_path(threads, folder)
    try:
        return Ceilings.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):  # none yet, or damaged: it is only a cache
        found = measure_ceilings(threads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        passing = path.with_suffix(f".{os.getpid()}")
        passing.write_text(found.model_dump_json(indent=2), encoding="utf-8")
        passing.replace(path)
    except OSError:
        return found  # a home that cannot be written costs a few seconds next time
    return found


def ceilings_path(threads: int, folder: Path | None = None) -> Path:
    """Return the file of this machine's ceilings, whether it is there or not."""
    if folder is None:
        above = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = Path(above) / "vitdeploy"
    versions = package_versions()
    key = {
        "format": _FORMAT,
        "cpu": cpu_name(),
        "features": [name for name in ("vnni", "amx", "bf16", "dot") if cpu_has(name)],
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "threads": threads,
        "engines": [versions[name] for name in ("openvino", "torch")],
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"ceilings-{digest[:16]}.json"


def measure_ceilings(threads: int) -> Ceilings:
    """Return what this machine reaches now."""
    import torch

    tops: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kind, hint in _HINTS.items():
            if kind in ("bf16", "fp16") and kind.upper() not in capabilities:
                tops[kind], reasons[kind] = None, f"this CPU has no products in {kind}"
                continue
            rates = [
                _openvino_rate(model(kind, shape), shape, threads, hint)
                for shape in _SHAPES
                for model in (_product, _pointwise)
            ]
            rates += [_torch_rate(kind, shape) for shape in _SHAPES if kind in ("fp32", "bf16")]
            tops[kind] = max(rates) / 1e12
        bandwidth = _copied_per_second() / 1e9
    finally:
        torch.set_num_threads(before)
    versions = package_versions()
    return Ceilings(
        tops=tops,
        tops_reason=reasons,
        bandwidth_gbs=bandwidth,
        threads=threads,
        measured_with=f"openvino {versions['openvino']}, torch {versions['torch']}",
    )


def _openvino_rate(model: Any, shape: tuple[int, int, int], threads: int, hint: str) -> float:
    """Return operations a second of a model's one product, by the engine's own counter."""
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "PERF_COUNT": True,
    }
    compiled = openvino_core().compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    rows, inner, columns = shape
    data = np.random.default_rng(0).random(tuple(model.inputs[0].shape), dtype=np.float32)

    def run() -> float:
        request.infer({0: data})
        # In INT8 it is called FullyConnectedQuantizedLegacy.
        kinds = ("FullyConnected", "MatMul", "Convolution")
        layers = [x for x in request.get_profiling_info() if x.node_type.startswith(kinds)]
        return float(sum(layer.real_time.total_seconds() for layer in layers))

    return 2.0 * rows * inner * columns / _fastest(run)


def _product(kind: str, shape: tuple[int, int, int]) -> Any:
    """Return the model of one product with constant weights."""
    import openvino as ov
    from openvino import opset13 as op

    rows, inner, columns = shape
    data = op.parameter([rows, inner], np.float32)
    left, right = _operands(kind, data, (inner, columns))
    return ov.Model([op.matmul(left, right, transpose_a=False, transpose_b=False)], [data])


def _pointwise(kind: str, shape: tuple[int, int, int]) -> Any:
    """Return the same product as a pointwise convolution, which has kernels of its own."""
    import openvino as ov
    from openvino import opset13 as op

    rows, inner, columns = shape
    data = op.parameter([1, inner, 16, rows // 16], np.float32)
    left, right = _operands(kind, data, (columns, inner, 1, 1))
    return ov.Model([op.convolution(left, right, [1, 1], [0, 0], [0, 0], [1, 1])], [data])


def _operands(kind: str, data: Any, weight_shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return what is multiplied: in INT8 both with the Q/DQ that OpenVINO takes for it."""
    from openvino import opset13 as op

    codes = np.random.default_rng(1).integers(-127, 128, weight_shape, dtype=np.int8)
    scale = np.float32(1 / 128)
    if kind != "int8":
        return data, op.constant(codes.astype(np.float32) * scale)
    low, top = np.float32(0), np.float32(255 / 128)
    quantized = op.fake_quantize(data, low, top, low, top, 256)
    return quantized, op.multiply(op.convert(op.constant(codes), np.float32), op.constant(scale))


def _torch_rate(kind: str, shape: tuple[int, int, int]) -> float:
    """Return operations a second of one product in PyTorch."""
    import torch

    rows, inner, columns = shape
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    left = torch.rand(rows, inner, dtype=dtype)
    right = torch.rand(inner, columns, dtype=dtype)
    output = torch.empty(rows, columns, dtype=dtype)
    return (
        2.0 * rows * inner * columns / _fastest(_timed(lambda: torch.mm(left, right, out=output)))
    )


def _copied_per_second() -> float:
    """Return bytes read and written a second by a copy of a large block."""
    import torch

    source = torch.ones(_COPIED_BYTES // 4)
    target = torch.zeros_like(source)
    return 2.0 * _COPIED_BYTES / _fastest(_timed(lambda: target.copy_(source)))


def _timed(run: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed


def _fastest(run: Callable[[], float]) -> float:
    """Return the shortest of the seconds that `run` tells, over about `_SECONDS`."""
    start = time.perf_counter()
    best, runs = float("inf"), 0
    while runs < _LEAST_RUNS or time.perf_counter() - start < _SECONDS:
        seconds = run()
        best = min(best, seconds) if seconds > 0 else best
        runs += 1
    return best
