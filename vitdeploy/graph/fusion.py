"""Recognises LayerNormalization and GELU written out in primitives, and folds BatchNormalization.

Only patterns that are exactly the fused operator are taken. What resembles one but is not is
reported by `canonical`, which also decides when these passes run.
"""

import math

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.linear import Linear, bias_of, linear_of, scale_outputs_, set_bias_
from vitdeploy.graph.readership import absorb_, absorbers
from vitdeploy.graph.surgery import (
    Array,
    Float64,
    constant_of,
    float_attribute,
    int_attribute,
    ints_attribute,
    ints_of,
    new_constant_,
    other_input,
    readers,
    remove_dead_,
    replace_,
    scalar_of,
    sole_reader,
)

LAYER_NORM_OPSET = 17
GELU_OPSET = 20


def fuse_layer_norms_(model: ir.Model) -> int:
    """Replace written-out layer normalisations by LayerNormalization; return how many."""
    if model.opset_imports.get("", 0) < LAYER_NORM_OPSET:
        return 0
    count = 0
    for node in list(model.graph):
        source, epsilon = _normalised(node)
        if source is not None:
            count += _fuse_layer_norm_(model.graph, node, source, epsilon)
    remove_dead_(model.graph)
    return count


def _normalised(node: ir.Node) -> tuple[ir.Value | None, float]:
    """Return (x, epsilon) where `node` is Div((x - mean x), sqrt(var x + epsilon)) on axis -1."""
    if node.op_type != "Div":
        return None, 0.0
    source = _centred(node.inputs[0])
    root = node.inputs[1].producer()
    if source is None or root is None or root.op_type != "Sqrt":
        return None, 0.0
    total = root.inputs[0].producer()
    if total is None or total.op_type != "Add":
        return None, 0.0
    for index in (0, 1):
        epsilon, variance = scalar_of(total.inputs[index]), total.inputs[1 - index].producer()
        if epsilon is not None and variance is not None and _is_last_mean(variance):
            square = variance.inputs[0].producer()
            if square is not None and _squared(square, source):
                return source, epsilon
    return None, 0.0


def _centred(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    if node is None or node.op_type != "Sub":
        return None
    mean = node.inputs[1].producer()
    if mean is None or not _is_last_mean(mean) or mean.inputs[0] is not node.inputs[0]:
        return None
    source: ir.Value = node.inputs[0]
    return source


def _squared(node: ir.Node, source: ir.Value) -> bool:
    if node.op_type == "Pow" and scalar_of(node.inputs[1]) != 2.0:
        return False
    if node.op_type == "Mul" and node.inputs[0] is not node.inputs[1]:
        return False
    return node.op_type in {"Pow", "Mul"} and _centred(node.inputs[0]) is source


def _is_last_mean(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean" or int_attribute(node, "keepdims", 1) != 1:
        return False
    axes = ints_attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = ints_of(node.inputs[1])
    rank = len(node.inputs[0].shape) if node.inputs[0].shape is not None else None
    return axes == [-1] or (rank is not None and axes == [rank - 1])


def _fuse_layer_norm_(graph: ir.Graph, div: ir.Node, source: ir.Value, epsilon: float) -> int:
    last, gamma, beta = div, None, None
    reader = sole_reader(last.outputs[0])
    if reader is not None and reader.op_type == "Mul":
        gamma = _vector(other_input(reader, last.outputs[0]))
        last = reader if gamma is not None else last
        reader = sole_reader(last.outputs[0])
    if gamma is not None and reader is not None and reader.op_type == "Add":
        beta = _vector(other_input(reader, last.outputs[0]))
        last = reader if beta is not None and beta.size == gamma.size else last
    width = _width(source, gamma)
    if width is None:
        return 0
    gamma = np.ones(width, np.float32) if gamma is None else gamma
    beta = np.zeros(width, gamma.dtype) if beta is None else beta
    node = ir.node(
        "LayerNormalization",
        [
            source,
            new_constant_(graph, f"{last.name or 'norm'}.weight", gamma),
            new_constant_(graph, f"{last.name or 'norm'}.bias", beta),
        ],
        attributes={"axis": -1, "epsilon": epsilon},
        name=last.name,
    )
    return _take_over_(graph, last, node)


def _vector(value: ir.Value | None) -> Array | None:
    """Return a constant of shape (C,) or (1, .., C), flat, or None."""
    array = constant_of(value)
    if array is None or array.ndim == 0 or array.size != array.shape[-1]:
        return None
    return array.reshape(-1)


def _width(source: ir.Value, gamma: Array | None) -> int | None:
    last = source.shape[-1] if source.shape is not None and len(source.shape) else None
    if isinstance(last, int):
        return last if gamma is None or gamma.size == last else None
    return None if gamma is None else int(gamma.size)


def _take_over_(graph: ir.Graph, last: ir.Node, node: ir.Node) -> int:
    """Put `node` behind `last` and let it take over its readers; return 1."""
    node.metadata_props.update(last.metadata_props)
    out, old = node.outputs[0], last.outputs[0]
    out.name, out.shape, out.type = f"{old.name}_fused", old.shape, old.type
    graph.insert_after(last, node)
    replace_(graph, old, out)
    return 1


def fuse_gelus_(model: ir.Model) -> int:
    """Replace 0.5 x (1 + erf(x / sqrt 2)) by Gelu; return how many."""
    if model.opset_imports.get("", 0) < GELU_OPSET:
        return 0
    count = 0
    for node in list(model.graph):
        if node.op_type != "Erf":
            continue
        source = _scaled_source(node.inputs[0])
        last = None if source is None else _gelu_end(node, source)
        if source is not None and last is not None:
            fused = ir.node("Gelu", [source], attributes={"approximate": "none"}, name=last.name)
            count += _take_over_(model.graph, last, fused)
    remove_dead_(model.graph)
    return count


def _scaled_source(value: ir.Value) -> ir.Value | None:
    """Return x where `value` is x / sqrt 2."""
    node = value.producer()
    if node is None or node.op_type not in {"Div", "Mul"}:
        return None
    root = math.sqrt(2.0) if node.op_type == "Div" else math.sqrt(0.5)
    for index in (0, 1):
        factor = scalar_of(node.inputs[1 - index])
        # Exporters store sqrt 2 as float32: 1e-6 is a few of its ulps.
        if (
            factor is not None
            and abs(factor - root) < 1e-6
            and (index == 0 or node.op_type == "Mul")
        ):
            source: ir.Value = node.inputs[index]
            return source
    return None


def _gelu_end(erf: ir.Node, source: ir.Value) -> ir.Node | None:
    """Return the node that completes x * 0.5 * (1 + erf), in whatever order it multiplies."""
    value = erf.outputs[0]
    add = sole_reader(value)
    if add is None or add.op_type != "Add" or scalar_of(other_input(add, value)) != 1.0:
        return None
    value, found = add.outputs[0], set[str]()
    while True:
        mul = sole_reader(value)
        if mul is None or mul.op_type != "Mul":
            return None
        new = _gelu_factors(other_input(mul, value), source)
        if not new or new & found:
            return None
        found |= new
        if found == {"half", "x"}:
            return mul
        value = mul.outputs[0]


def _gelu_factors(value: ir.Value | None, source: ir.Value) -> set[str]:
    if value is source:
        return {"x"}
    if scalar_of(value) == 0.5:
        return {"half"}
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Mul" and source in node.inputs:
        return {"x", "half"} if scalar_of(other_input(node, source)) == 0.5 else set()
    return set()


def fold_batch_norms_(model: ir.Model) -> list[tuple[str, str]]:
    """Fold each BatchNormalization into the layer before it, or else into its readers.

    Returns:
        (node name, reason) of those that could not be folded.
    """
    refused = []
    for node in list(model.graph):
        if node.op_type == "BatchNormalization":
            reason = _fold_batch_norm_(model, node)
            if reason is not None:
                refused.append((str(node.name), reason))
    remove_dead_(model.graph)
    return refused


def _fold_batch_norm_(model: ir.Model, node: ir.Node) -> str | None:
    parameters = [constant_of(value) for value in node.inputs[1:5]]
    if any(array is None for array in parameters):
        return "its parameters are not constant"
    gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in parameters)
    factor: Float64 = gamma / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
    shift: Float64 = beta - mean * factor
    before = _layer_before(node)
    if before is None:
        return _fold_forward_(model, node, factor, shift)
    if not replace_(model.graph, node.outputs[0], before.output):
        return "its result cannot be renamed to the graph output"
    scale_outputs_(model.graph, before, factor)
    set_bias_(model.graph, before, bias_of(before) + shift)
    return None


def _layer_before(node: ir.Node) -> Linear | None:
    """Return the layer that `node` alone reads, with the channels on axis 1."""
    data = node.inputs[0]
    linear = linear_of(data)
    if linear is None or sole_reader(data) is not node:
        return None
    return linear if linear.channel_axis == 1 or _is_matrix(data) else None


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 2


def _fold_forward_(model: ir.Model, node: ir.Node, factor: Float64, shift: Float64) -> str | None:
    """Move y = factor x + shift into the layers that read y, or return why that is not exact."""
    found = absorbers(model, node.outputs[0], concrete_shapes(model), axis=1)
    reason = found.reason or found.shift_reason
    if reason is not None:
        return f"the layer before it has other readers, and behind it {reason}"
    absorb_(model.graph, found, factor, shift)
    replace_(model.graph, node.outputs[0], node.inputs[0])
    return None


def leftovers(model: ir.Model) -> list[tuple[str, str]]:
    """Return (node name, reason) of what looks like a fusable pattern but is not one."""
    opset = model.opset_imports.get("", 0)
    found = []
    for node in model.graph:
        if node.op_type == "Sqrt" and any(n.op_type == "Div" for n, _ in readers(node.outputs[0])):
            reason = "a division by a root that is not LayerNormalization over the last axis"
            if opset < LAYER_NORM_OPSET:
                reason = f"opset {opset} has no LayerNormalization; convert to {LAYER_NORM_OPSET}"
            found.append((str(node.name), reason))
        elif node.op_type == "Erf":
            reason = "an Erf that is not part of 0.5 x (1 + erf(x / sqrt 2))"
            if opset < GELU_OPSET:
                reason = f"opset {opset} has no Gelu; convert to {GELU_OPSET}"
            found.append((str(node.name), reason))
    return found
