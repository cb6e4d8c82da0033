"""What a package is made of, as the pipeline describes it. Writing it is `package`'s."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from vitdeploy.device.onboard.contents import InputSpec
from vitdeploy.errors import ExportError

Tensors = Mapping[str, NDArray[Any]]

_OPSET_STEPS: tuple[str, ...] = ("8.6", "10.0", "10.15", "11.0")
"""Versions from which newer opsets are read; strong typing came with the second."""


@dataclass(frozen=True)
class PackageGraph:
    """One ONNX file of a part, there already, and how its own outputs look on ONNX Runtime."""

    precision: str
    typing: Literal["strong", "weak"]
    path: Path
    quantized: tuple[Tensors, ...]
    """By golden case: outputs by name; FP32's own where the graph is FP32."""
    oldest_tensorrt: str = "8.6"
    extra_files: tuple[Path, ...] = ()
    """External data."""


@dataclass(frozen=True)
class PackageCase:
    """What goes into the engine at once, and what the FP32 reference made of it."""

    inputs: Tensors
    reference: Tensors


@dataclass(frozen=True)
class PackagePart:
    """One part of the model."""

    name: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    graphs: tuple[PackageGraph, ...]
    golden: tuple[PackageCase, ...]


@dataclass(frozen=True)
class PackageOptions:
    """What concerns the package as a whole."""

    model: str
    trt_version: str = "10.3"
    """What the graphs were made for."""
    notes: tuple[str, ...] = ()
    """Lines for README.md: stamps, what is kept in float."""


def graph_from_file(
    precision: str,
    path: Path,
    quantized: tuple[Tensors, ...],
    extra_files: tuple[Path, ...] = (),
) -> PackageGraph:
    """Return the record of `<part>.strong.onnx` or `<part>.weak.onnx`, by name and opset.

    Args:
        precision: what the engine will keep.
        path: the file.
        quantized: by golden case, its own outputs on ONNX Runtime.
        extra_files: its external data.

    Raises:
        ExportError: the name ends in neither, or no TensorRT takes the opset.
    """
    import onnx_ir as ir

    from vitdeploy.lint.versions import version_from_text  # lint itself reads packages

    candidates = _OPSET_STEPS
    typing: Literal["strong", "weak"]
    if path.name.endswith(".strong.onnx"):
        typing = "strong"
        candidates = candidates[1:]
    elif path.name.endswith(".weak.onnx"):
        typing = "weak"
    else:
        raise ExportError(f"'{path.name}' must end in .strong.onnx or .weak.onnx.")
    opset = int(ir.load(path).opset_imports[""])
    taking = [text for text in candidates if version_from_text(text).newest_opset >= opset]
    if not taking:
        raise ExportError(f"'{path.name}' has opset {opset}, which no TensorRT takes so far.")
    return PackageGraph(precision, typing, path, quantized, taking[0], extra_files)
