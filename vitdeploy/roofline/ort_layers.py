"""Layers of ONNX Runtime's profile: kernel times, and arithmetic from the shapes it records.

A weight that a kernel packed for itself is absent from the profile; its size follows from what
the product reads and writes.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.layout_ops import Shapes
from vitdeploy.graph.work import macs_by_node
from vitdeploy.roofline.layers import COUNTED_RUNS, TYPE_BYTES, LayerCount, Tensor, moved_bytes
from vitdeploy.runner import Feeds
from vitdeploy.targets import Settings

_TYPES = {
    "float": "fp32",
    "float16": "fp16",
    "uint8": "int8",
    "int8": "int8",
    "int64": "int64",
    "uint4": "int4",
    "int4": "int4",
}
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class _Kernel:
    """One kernel as the profile records it."""

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    constant_bytes: int


def ort_layers(
    path: Path, settings: Settings, feeds: Feeds, threads: int | None
) -> tuple[LayerCount, ...]:
    """Return the kernels in the order they run.

    Args:
        path: the ONNX file.
        settings: of the session.
        feeds: of one run.
        threads: of the engine; its own choice where None.
    """
    kernels: dict[str, _Kernel] = {}
    times: dict[str, list[float]] = {}
    for event in _profile(path, settings, feeds, threads):
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            key = f"{event['args'].get('node_index', '')}:{event['name']}"
            times.setdefault(key, []).append(event["dur"] / 1000.0)
            if key not in kernels:
                kernels[key] = _kernel(event)
    batch = max(1, len(next(iter(feeds.values()))))
    written = _macs_in_file(path, batch)
    return tuple(
        _layer(kernel, min(times[key][1:] or times[key]), written)
        for key, kernel in kernels.items()
    )


def _profile(
    path: Path, settings: Settings, feeds: Feeds, threads: int | None
) -> list[dict[str, Any]]:
    """Return the events of a few runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    if threads:
        options.intra_op_num_threads = threads
    for key, value in settings.items():
        options.add_session_config_entry(key, str(value))
    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {node.name for node in session.get_inputs()}
        wanted = {name: value for name, value in feeds.items() if name in names}
        for _ in range(COUNTED_RUNS + 1):
            session.run(None, wanted)
        text = Path(session.end_profiling()).read_text(encoding="utf-8")
    events: list[dict[str, Any]] = json.loads(text)
    return events


def _macs_in_file(path: Path, batch: int) -> dict[str, int]:
    """Return multiply-accumulates of `batch` images by name of the node and of its output.

    A convolution that ONNX Runtime brings into its blocked layout is called after its output.
    """
    model = ir.load(path)
    counted = macs_by_node(model, batch)
    shapes = concrete_shapes(model, batch)
    found: dict[str, int] = {}
    for node in model.graph:
        macs = counted.get(str(node.name))
        if node.op_type == "ConvTranspose":
            macs = _transposed_macs(node, shapes, batch)
        if macs is not None:
            found[str(node.name)] = found[f"{node.outputs[0].name}_nchwc"] = batch * macs
    return found


def _transposed_macs(node: ir.Node, shapes: Shapes, batch: int) -> int | None:
    """Return multiply-accumulates an image: each input value meets its part of the weight once."""
    data, weight = (shapes.get(str(value.name)) for value in node.inputs[:2] if value is not None)
    if data is None or weight is None:
        return None
    return prod(data) * prod(weight[1:]) // batch


def _kernel(event: Mapping[str, Any]) -> _Kernel:
    facts = event["args"]
    return _Kernel(
        name=event["name"].removesuffix(_SUFFIX),
        kind=facts["op_name"],
        inputs=tuple(_tensor(item) for item in facts.get("input_type_shape", ())),
        outputs=tuple(_tensor(item) for item in facts.get("output_type_shape", ())),
        constant_bytes=int(facts.get("parameter_size", 0)),
    )


def _tensor(item: Mapping[str, list[int]]) -> Tensor:
    ((name, shape),) = item.items()
    return Tensor(tuple(shape), _TYPES.get(name, "other"))


def _layer(kernel: _Kernel, milliseconds: float, in_file: Mapping[str, int]) -> LayerCount:
    macs, columns = _macs(kernel)
    is_product = macs is not None or "Conv" in kernel.kind
    if "Conv" in kernel.kind:  # in its blocked layout channels are padded
        macs = in_file.get(re.sub(r"_token_\d+$", "", kernel.name), macs)
    computed = _computed_type(kernel)
    moved = moved_bytes([*kernel.inputs, *kernel.outputs])
    weight = 0
    if columns and kernel.inputs:
        packed = int(columns * kernel.inputs[0].shape[-1] * _weight_bytes(kernel, computed))
        shown = _shown_weight(kernel)
        if shown is None:
            weight, moved = packed, moved + packed
        elif kernel.constant_bytes >= shown.bytes:
            weight = shown.bytes
    elif "Conv" in kernel.kind:
        shown = _shown_weight(kernel)
        weight = 0 if shown is None else shown.bytes
    return LayerCount(
        name=kernel.name,
        kind=kernel.kind,
        type=computed,
        milliseconds=milliseconds,
        is_product=is_product,
        macs=macs,
        bytes=moved,
        weight_bytes=weight,
    )


def _macs(kernel: _Kernel) -> tuple[int | None, int]:
    """Return multiply-accumulates, and the columns of the weight where it may have one."""
    if not kernel.inputs or not kernel.outputs or not kernel.inputs[0].shape:
        return None, 0
    data, output = kernel.inputs[0].shape, kernel.outputs[0].shape
    if "Attention" in kernel.kind:
        return _attention_macs(kernel), 0
    if "ConvTranspose" in kernel.kind:
        return None, 0
    if "Conv" in kernel.kind:
        shown = _shown_weight(kernel)
        return (None if shown is None else prod(output) * prod(shown.shape[1:])), 0
    if "MatMul" in kernel.kind or "Gemm" in kernel.kind:
        return prod(output) * data[-1], output[-1] if output else 1
    return None, 0


def _attention_macs(kernel: _Kernel) -> int | None:
    """Return the two products of attention on q, k, v of (B, tokens, channels)."""
    first = kernel.inputs[:3]
    if any(len(tensor.shape) != 3 for tensor in first) or len(first) < 3:
        return None
    query, key, value = (tensor.shape for tensor in first)
    return query[0] * query[1] * key[1] * (query[2] + value[2])


def _shown_weight(kernel: _Kernel) -> Tensor | None:
    """Return the second matrix, a weight or an activation, where the profile shows it."""
    least = 3 if "Conv" in kernel.kind else 2
    others = [t for t in kernel.inputs[1:] if len(t.shape) >= least]
    return others[0] if others else None


def _computed_type(kernel: _Kernel) -> str:
    return kernel.inputs[0].type if kernel.inputs else "other"


def _weight_bytes(kernel: _Kernel, computed: str) -> float:
    """Return bytes an element of a packed weight."""
    return 0.5 if kernel.kind == "MatMulNBits" else TYPE_BYTES.get(computed, 4.0)
