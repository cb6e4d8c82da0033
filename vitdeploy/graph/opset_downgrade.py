"""A graph in an older opset, where its operators meant the same then; refused where they did not.

ONNX's own converter has no adapter for several of these (Pad, axes as inputs). Raising an opset is
`opset`'s.
"""

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from vitdeploy.errors import ExportError
from vitdeploy.graph.surgery import (
    constant_of,
    fresh_name,
    int_attribute,
    ints_of,
    new_constant_,
    remove_dead_,
    replace_,
)

_WIDER_TYPES = frozenset(
    {"Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "Equal", "Identity"}
    | {"IsInf", "IsNaN", "QuantizeLinear", "Reshape", "Shape", "Size"}
)
"""Operators whose newer versions only take more types."""
_NEW_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Cast": {"saturate": 1},
    "QuantizeLinear": {"saturate": 1},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "AveragePool": {"dilations": None},
    "ScatterElements": {"reduction": None},
}
"""Attributes that older versions lack, with the value that means what those do."""
_REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"}
    | {"ReduceMin", "ReduceProd", "ReduceSumSquare"}
)


def lowered_opset(model: ir.Model, opset: int, needed_by: str) -> ir.Model:
    """Return a copy of `model` in `opset` (17 or newer), or as it is where its own is no newer.

    Args:
        model: FP32 graph, with or without Q/DQ; not changed.
        opset: what the runtime takes.
        needed_by: who asks, for the message.

    Raises:
        ExportError: an operator has no equivalent there.
    """
    own = int(model.opset_imports.get("", 0))
    copy = model.clone()
    if own <= opset:
        return copy
    for node in list(copy.graph):
        if node.domain in ("", "ai.onnx") and not _is_same(node, own, opset):
            reason = _lower_(copy, node)
            if reason is not None:
                raise ExportError(
                    f"{needed_by} takes ONNX up to opset {opset}, where {node.op_type} "
                    f"'{node.name}' {reason}. Use --trt-version 10.3, which takes opset 20."
                )
    copy.opset_imports[""] = opset
    remove_dead_(copy.graph)
    return copy


def _is_same(node: ir.Node, own: int, opset: int) -> bool:
    return _since(node.op_type, own) == _since(node.op_type, opset)


def _since(operator: str, opset: int) -> int | None:
    try:
        return int(onnx.defs.get_schema(operator, opset, "").since_version)
    except onnx.defs.SchemaError:
        return None


def _lower_(model: ir.Model, node: ir.Node) -> str | None:
    """Rewrite one node in place; return why it cannot be."""
    reason = _drop_attributes_(node)
    if reason is not None or node.op_type in _WIDER_TYPES:
        return reason
    if node.op_type == "Gelu":
        return _write_out_gelu_(model, node)
    if node.op_type in _REDUCTIONS:
        return _axes_to_attribute_(node)
    if node.op_type == "Pad":
        return _pad_all_axes_(model, node)
    if node.op_type == "Split":
        return _sizes_for_split_(model, node)
    if node.op_type in ("Resize", "AveragePool", "ScatterElements"):
        return None
    return "has no equivalent"


def _drop_attributes_(node: ir.Node) -> str | None:
    for name, neutral in _NEW_ATTRIBUTES.get(node.op_type, {}).items():
        attribute = node.attributes.get(name)
        if attribute is None:
            continue
        value = attribute.value
        value = value.encode() if isinstance(value, str) else value
        if value != neutral:
            return f"cannot have {name}={attribute.value}"
        del node.attributes[name]
    if node.op_type == "Resize" and node.attributes.get("axes") is not None:
        return "cannot have axes"
    return None


def _write_out_gelu_(model: ir.Model, node: ir.Node) -> str | None:
    """Replace a Gelu by x / 2 * (1 + erf(x / sqrt 2)), or by its approximation with tanh."""
    kind = node.attributes.get("approximate")
    graph, data, old = model.graph, node.inputs[0], node.outputs[0]
    nodes: list[ir.Node] = []

    def make(operator: str, *inputs: ir.Value | float) -> ir.Value:
        label = f"{node.name}/{operator}_{len(nodes)}"
        values = [
            new_constant_(graph, f"{label}.constant", np.asarray(value, np.float32))
            if isinstance(value, float)
            else value
            for value in inputs
        ]
        made = ir.node(operator, values, name=label)
        made.outputs[0].name = fresh_name(graph, f"{label}_output")
        made.outputs[0].shape, made.outputs[0].type = old.shape, old.type
        nodes.append(made)
        return made.outputs[0]

    if kind is not None and kind.as_string() == "tanh":
        cube = make("Mul", make("Mul", make("Mul", data, data), data), 0.044715)
        inner = make("Mul", make("Add", data, cube), math.sqrt(2.0 / math.pi))
        step = make("Tanh", inner)
    else:
        step = make("Erf", make("Div", data, math.sqrt(2.0)))
    result = make("Mul", make("Mul", data, make("Add", step, 1.0)), 0.5)
    graph.insert_after(node, nodes)
    replace_(graph, old, result)
    graph.remove(node, safe=True)
    return None


def _axes_to_attribute_(node: ir.Node) -> str | None:
    if int_attribute(node, "noop_with_empty_axes", 0):
        return "cannot have noop_with_empty_axes"
    if "noop_with_empty_axes" in node.attributes:
        del node.attributes["noop_with_empty_axes"]
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    axes = ints_of(node.inputs[1])
    if axes is None:
        return "needs constant axes"
    node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    node.replace_input_with(1, None)
    node.resize_inputs(1)
    return None


def _pad_all_axes_(model: ir.Model, node: ir.Node) -> str | None:
    """Pad named axes as a Pad of all axes."""
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() == "wrap":
        return "cannot wrap"
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return None
    pads, axes = constant_of(node.inputs[1]), ints_of(node.inputs[3])
    shape = node.inputs[0].shape
    if pads is None or axes is None or shape is None:
        return "needs constant pads and axes"
    rank = len(shape)
    full = np.zeros(2 * rank, np.int64)
    for position, axis in enumerate(axes):
        full[axis % rank] = pads[position]
        full[rank + axis % rank] = pads[len(axes) + position]
    node.replace_input_with(1, new_constant_(model.graph, f"{node.name}.pads", full))
    node.replace_input_with(3, None)
    node.resize_inputs(3)
    return None


def _sizes_for_split_(model: ir.Model, node: ir.Node) -> str | None:
    """Write out the sizes of a Split into equal parts."""
    if "num_outputs" not in node.attributes:
        return None
    parts = node.attributes["num_outputs"].as_int()
    shape, axis = node.inputs[0].shape, int_attribute(node, "axis", 0)
    size = shape[axis] if shape is not None else None
    if not isinstance(size, int):
        return "needs a known size"
    each = -(-size // parts)
    sizes = np.asarray([each] * (parts - 1) + [size - each * (parts - 1)], np.int64)
    del node.attributes["num_outputs"]
    node.resize_inputs(2)
    node.replace_input_with(1, new_constant_(model.graph, f"{node.name}.sizes", sizes))
    return None
