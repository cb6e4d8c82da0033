"""Layers of OpenVINO's execution graph: times of its counters, arithmetic from its shapes."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.openvino_core import openvino_core
from vitdeploy.roofline.layers import COUNTED_RUNS, LayerCount, Tensor, moved_bytes
from vitdeploy.runner import Feeds
from vitdeploy.targets import Settings

_TYPES = {
    "i4": "int4",
    "u4": "int4",
    "i8": "int8",
    "u8": "int8",
    "f16": "fp16",
    "bf16": "bf16",
    "f32": "fp32",
    "i64": "int64",
}
_PRODUCTS = frozenset({"FullyConnected", "FullyConnectedCompressed", "MatMul"})
_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
_NOT_LAYERS = frozenset({"Const", "Input", "Output"})


def openvino_layers(
    path: Path, settings: Settings, feeds: Feeds, threads: int | None
) -> tuple[LayerCount, ...]:
    """Return the layers that take time, in the order they run.

    Args:
        path: an IR, or an ONNX file.
        settings: of the engine.
        feeds: of one run; the shapes are fixed to theirs.
        threads: of the engine; its own choice where None.
    """
    core = openvino_core()
    model = core.read_model(path)
    names = {port.get_any_name() for port in model.inputs}
    wanted = {name: value for name, value in feeds.items() if name in names}
    model.reshape({name: list(np.shape(value)) for name, value in wanted.items()})
    inside = _macs_by_operator(model)
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **settings, "PERF_COUNT": True}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", config)
    times = _times(compiled, wanted)
    layers = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: _text(value) for key, value in node.get_rt_info().items()}
        name = node.get_friendly_name()
        if facts.get("layerType", "Const") not in _NOT_LAYERS and name in times:
            layers.append(_layer(node, facts, times[name], inside))
    return tuple(layers)


def _times(compiled: Any, feeds: Feeds) -> dict[str, float]:
    """Return milliseconds by layer, the fastest of several runs."""
    request = compiled.create_infer_request()
    spent: dict[str, list[float]] = {}
    for _ in range(COUNTED_RUNS + 1):
        request.infer(dict(feeds))
        for layer in request.get_profiling_info():
            milliseconds = 1000.0 * layer.real_time.total_seconds()
            if milliseconds:
                spent.setdefault(layer.node_name, []).append(milliseconds)
    return {name: min(values[1:] or values) for name, values in spent.items()}


def _layer(
    node: Any, facts: Mapping[str, str], milliseconds: float, inside: Mapping[str, int]
) -> LayerCount:
    kind = facts["layerType"]
    inputs = [_source_tensor(port) for port in node.inputs()]
    written = facts.get("outputPrecisions", "").split(",")
    outputs = [
        Tensor(_shape(port), _type(written[min(index, len(written) - 1)]))
        for index, port in enumerate(node.outputs())
    ]
    computed = _computed_type(facts)
    names = facts.get("originalLayersNames", "").split(",")
    macs = _macs_from_shapes(kind, inputs, outputs)
    if macs is None:  # fused attention, for one
        macs = sum(inside[name] for name in names if name in inside) or None
    is_product = macs is not None or kind in _PRODUCTS | _CONVOLUTIONS
    weight = 0
    if kind in _PRODUCTS | _CONVOLUTIONS and _is_constant(node.inputs()[1]):
        held = Tensor(inputs[1].shape, computed).bytes
        weight = min(held, inputs[1].bytes) if inputs[1].type != "other" else held
    return LayerCount(
        name=node.get_friendly_name(),
        kind=f"{kind} {facts.get('primitiveType', '')}".strip(),
        type=computed,
        milliseconds=milliseconds,
        is_product=is_product,
        macs=macs,
        bytes=moved_bytes([*inputs, *outputs]),
        weight_bytes=weight,
    )


def _macs_from_shapes(kind: str, inputs: list[Tensor], outputs: list[Tensor]) -> int | None:
    """Return multiply-accumulates of a product that is a layer of its own."""
    if kind in _PRODUCTS:
        return prod(outputs[0].shape) * inputs[0].shape[-1]
    if kind in _CONVOLUTIONS:
        weight = inputs[1].shape
        grouped = len(weight) > len(inputs[0].shape)  # (groups, out, in, height, width)
        return prod(outputs[0].shape) * prod(weight[2 if grouped else 1 :])
    return None


def _macs_by_operator(model: Any) -> dict[str, int]:
    """Return multiply-accumulates by name of the operators that an engine may fuse."""
    counted: dict[str, int] = {}
    for operator in model.get_ordered_ops():
        shapes = [_shape(port) for port in operator.inputs()]
        if operator.get_type_name() == "MatMul":
            inner = shapes[0][-2 if operator.get_attributes().get("transpose_a") else -1]
            counted[operator.get_friendly_name()] = prod(_shape(operator.output(0))) * inner
        elif operator.get_type_name() == "ScaledDotProductAttention":
            query, key, value = shapes[:3]
            rows = prod(query[:-1]) * key[-2]
            counted[operator.get_friendly_name()] = rows * (query[-1] + value[-1])
    return counted


def _source_tensor(port: Any) -> Tensor:
    """Return what a layer reads, in the type its producer writes."""
    source = port.get_source_output()
    written = _text(source.get_node().get_rt_info()["outputPrecisions"]).split(",")
    return Tensor(_shape(port), _type(written[min(source.get_index(), len(written) - 1)]))


def _is_constant(port: Any) -> bool:
    """Return whether an input is a constant, or one that was brought into another layout."""
    node = port.get_source_output().get_node()
    while node.inputs():
        if _text(node.get_rt_info()["execTimeMcs"]) != "not_executed":
            return False
        node = node.inputs()[0].get_source_output().get_node()
    return _text(node.get_rt_info()["layerType"]) == "Const"


def _shape(port: Any) -> tuple[int, ...]:
    shape = port.get_partial_shape()
    return tuple(int(size.get_length()) if size.is_static else 1 for size in shape)


def _computed_type(facts: Mapping[str, str]) -> str:
    """Return what a kernel computes in: its name ends with that; the precision is its weights'."""
    named = _type(facts.get("primitiveType", "").rsplit("_", 1)[-1].lower())
    return named if named != "other" else _type(facts.get("runtimePrecision", ""))


def _type(precision: str) -> str:
    return _TYPES.get(precision, "other")


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
