"""Writing the package `trt/`: build.py, build.sh, README.md, package.json and golden files.

The ONNX graphs are in the folder already; what the device does with them is in `onboard`.
"""

import json
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.device.assemble import build_script
from vitdeploy.device.onboard.contents import (
    PACKAGE_FORMAT,
    PACKAGE_NAME,
    PACKAGE_SCHEMA_VERSION,
    InputSpec,
)
from vitdeploy.device.onboard.fidelity import score_output
from vitdeploy.device.onboard.tensors import DTYPE_LETTERS
from vitdeploy.device.parts import (
    PackageCase,
    PackageGraph,
    PackageOptions,
    PackagePart,
    Tensors,
)
from vitdeploy.errors import DataError, ExportError
from vitdeploy.manifest import sha256_from_file
from vitdeploy.version import __version__

HIGHEST_ASKED_DB = 40.0
"""FP16 kernels may sum in another order than ONNX Runtime; 1 % of the signal is room for that."""
MARGIN_DB = 3.0
"""The engine's own rounding may add as much noise as quantisation did, not more."""
_BY_FALLING_PRECISION = ("fp32", "bf16", "fp16", "mixed", "int8")


def write_package(
    folder: Path, parts: tuple[PackagePart, ...], options: PackageOptions
) -> tuple[Path, ...]:
    """Return the files written into `folder`, which holds the graphs already.

    Equal arguments and graphs give equal bytes.

    Raises:
        ExportError: a graph lies outside the folder, a golden tensor does not fit its input, or
            outputs are missing.
        DataError: a golden tensor holds NaN or infinity, or a type that no engine takes.
    """
    for part in parts:
        _require_consistent(folder, part)
    written = [path for part in parts for path in _write_golden(folder, part)]
    texts = {
        "build.py": build_script(__version__),
        "build.sh": files("vitdeploy.device").joinpath("build.sh").read_text("utf-8"),
        "README.md": _readme(parts, options),
    }
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, encoding="utf-8", newline="\n")
        if name != "README.md":
            path.chmod(0o755)
        written.append(path)
    graphs = [path for part in parts for g in part.graphs for path in (g.path, *g.extra_files)]
    listed = sorted({*written, *graphs})
    contents = {
        "format": PACKAGE_FORMAT,
        "schema_version": PACKAGE_SCHEMA_VERSION,
        "model": options.model,
        "vitdeploy_version": __version__,
        "trt_version": options.trt_version,
        "parts": [_part_entry(folder, part) for part in parts],
        "files": [_file_entry(folder, path) for path in listed],
    }
    path = folder / PACKAGE_NAME
    text = json.dumps(contents, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
    return (*written, path)


def cases_from_arrays(inputs: Tensors, reference: Tensors, batch: int) -> tuple[PackageCase, ...]:
    """Return golden arrays (N, ...) cut into cases of `batch` images; a rest is left out.

    Raises:
        ExportError: there are fewer than `batch` images.
    """
    cuts = [
        PackageCase(inputs=_cut(inputs, start, batch), reference=_cut(reference, start, batch))
        for start in range(0, _images(inputs) - batch + 1, batch)
    ]
    if not cuts:
        raise ExportError(
            f"{_images(inputs)} golden images do not fill a batch of {batch}. "
            "Give more evaluation images, or export with --batch 1."
        )
    return tuple(cuts)


def tolerance_db(reference: Sequence[NDArray[Any]], own: Sequence[NDArray[Any]]) -> float:
    """Return the least SQNR in dB that the engine must keep for one output.

    It is what the very graph keeps on ONNX Runtime, less `MARGIN_DB`, and no more than
    `HIGHEST_ASKED_DB`; below 0 dB an output would be all noise, so no less is asked.

    Args:
        reference: FP32 outputs by case, (N, ...).
        own: the graph's outputs by case, of the same shapes.
    """
    score = score_output(_rows(reference), _rows(own))
    kept = math.inf if score.sqnr_db is None else score.sqnr_db
    return max(0.0, min(HIGHEST_ASKED_DB, kept - MARGIN_DB))


def _require_consistent(folder: Path, part: PackagePart) -> None:
    if not part.golden or not part.graphs:
        raise ExportError(f"part '{part.name}' has no golden case or no graph; both are needed.")
    for graph in part.graphs:
        for path in (graph.path, *graph.extra_files):
            if path.parent != folder or not path.is_file():
                raise ExportError(f"'{path}' of part '{part.name}' is not a file of '{folder}'.")
        if len(graph.quantized) != len(part.golden):
            raise ExportError(
                f"'{graph.path.name}' has outputs of {len(graph.quantized)} golden cases; "
                f"part '{part.name}' has {len(part.golden)}."
            )
    for case in part.golden:
        for spec in part.inputs:
            _require_fitting(part.name, spec, case.inputs.get(spec.name))
        _require_outputs(part, case.reference, case)
    for graph in part.graphs:
        for case, outputs in zip(part.golden, graph.quantized, strict=True):
            _require_outputs(part, outputs, case)


def _require_outputs(part: PackagePart, outputs: Tensors, case: PackageCase) -> None:
    shapes = {name: array.shape for name, array in outputs.items()}
    expected = {name: case.reference[name].shape for name in part.outputs if name in case.reference}
    if set(shapes) != set(part.outputs) or shapes != expected:
        raise ExportError(
            f"golden outputs of part '{part.name}' are {shapes}; they must be "
            f"{', '.join(part.outputs)}, each of its FP32 shape {expected}."
        )


def _require_fitting(part: str, spec: InputSpec, array: NDArray[Any] | None) -> None:
    if array is None:
        raise ExportError(f"the golden input '{spec.name}' of part '{part}' is missing.")
    bounds = list(zip(spec.minimum, array.shape, spec.maximum, strict=False))
    fits = len(array.shape) == len(spec.shape) and all(a <= size <= b for a, size, b in bounds)
    if not fits or array.dtype.name != spec.dtype:
        raise ExportError(
            f"the golden input '{spec.name}' of part '{part}' is {array.dtype} {array.shape}; the "
            f"engine takes {spec.dtype} from {spec.minimum} to {spec.maximum}."
        )


def _write_golden(folder: Path, part: PackagePart) -> list[Path]:
    written = []
    for index, case in enumerate(part.golden):
        groups = {"input": case.inputs, "reference": case.reference}
        for graph in part.graphs:
            groups[f"{graph.precision}.{graph.typing}"] = graph.quantized[index]
        for group, tensors in groups.items():
            for name, array in tensors.items():
                path = folder / _golden_file(part.name, index, group, name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(_raw(name, array))
                written.append(path)
    return written


def _raw(name: str, array: NDArray[Any]) -> bytes:
    """Return the array's little-endian bytes in C order."""
    if array.dtype.name not in DTYPE_LETTERS:
        raise DataError(
            f"golden tensor '{name}' is {array.dtype}; allowed are {', '.join(DTYPE_LETTERS)}."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            f"golden tensor '{name}' holds NaN or infinity, so nothing can be compared with it. "
            "Check the checkpoint and the images."
        )
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _golden_file(part: str, case: int, group: str, tensor: str) -> str:
    safe = re.sub(r"[^\w.-]", "_", tensor)  # an ONNX name may hold a slash
    return f"golden/{part}.{case}.{group}.{safe}.bin"


def _part_entry(folder: Path, part: PackagePart) -> dict[str, Any]:
    return {
        "name": part.name,
        "inputs": [
            {
                "name": spec.name,
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "min": list(spec.minimum),
                "opt": list(spec.optimum),
                "max": list(spec.maximum),
            }
            for spec in part.inputs
        ],
        "outputs": [
            {"name": name, "dtype": part.golden[0].reference[name].dtype.name}
            for name in part.outputs
        ],
        "graphs": [_graph_entry(folder, part, graph) for graph in _ordered(part.graphs)],
        "golden": [_case_entry(part, index) for index in range(len(part.golden))],
    }


def _graph_entry(folder: Path, part: PackagePart, graph: PackageGraph) -> dict[str, Any]:
    return {
        "precision": graph.precision,
        "typing": graph.typing,
        **_file_entry(folder, graph.path),
        "oldest_tensorrt": graph.oldest_tensorrt,
        "min_sqnr_db": {name: _least_db(part, graph.precision, name) for name in part.outputs},
    }


def _least_db(part: PackagePart, precision: str, output: str) -> float:
    """Return the tolerance of a precision's loosest graph.

    ONNX Runtime runs a weakly typed graph's float operations in FP32, the engine in FP16, as the
    strongly typed graph says.
    """
    reference = [case.reference[output] for case in part.golden]
    return min(
        tolerance_db(reference, [outputs[output] for outputs in graph.quantized])
        for graph in part.graphs
        if graph.precision == precision
    )


def _case_entry(part: PackagePart, index: int) -> dict[str, Any]:
    def stored(group: str, tensors: Tensors) -> dict[str, Any]:
        return {
            name: {
                "file": _golden_file(part.name, index, group, name),
                "dtype": array.dtype.name,
                "shape": list(array.shape),
            }
            for name, array in tensors.items()
        }

    case = part.golden[index]
    return {
        "inputs": stored("input", case.inputs),
        "reference": stored("reference", case.reference),
        "quantized": {
            f"{graph.precision}.{graph.typing}": stored(
                f"{graph.precision}.{graph.typing}", graph.quantized[index]
            )
            for graph in _ordered(part.graphs)
        },
    }


def _ordered(graphs: Sequence[PackageGraph]) -> list[PackageGraph]:
    """Return the graphs from high to low precision, names unknown here last."""

    def place(graph: PackageGraph) -> tuple[int, str]:
        known = _BY_FALLING_PRECISION
        rank = known.index(graph.precision) if graph.precision in known else len(known)
        return rank, graph.typing

    return sorted(graphs, key=place)


def _file_entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    return {"file": name, "sha256": sha256_from_file(path), "bytes": path.stat().st_size}


def _readme(parts: tuple[PackagePart, ...], options: PackageOptions) -> str:
    from jinja2 import Environment, StrictUndefined

    text = files("vitdeploy.device").joinpath("README.md.j2").read_text("utf-8")
    environment = Environment(  # noqa: S701 - Markdown, for people, from the user's own names
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(text).render(
        parts=[(part, _ordered(part.graphs)) for part in parts],
        options=options,
        version=__version__,
    )


def _rows(arrays: Sequence[NDArray[Any]]) -> list[list[float]]:
    return [row.ravel().tolist() for array in arrays for row in np.atleast_1d(array)]


def _images(tensors: Tensors) -> int:
    return min(len(array) for array in tensors.values())


def _cut(tensors: Tensors, start: int, batch: int) -> dict[str, NDArray[Any]]:
    return {name: array[start : start + batch] for name, array in tensors.items()}
