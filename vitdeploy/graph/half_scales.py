"""Scales that FP16 can hold, so that an FP16 and an FP32 graph carry the very same quantisation."""

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.surgery import constant_of, new_constant_, set_constant_

SMALLEST_HALF = 2.0**-24
"""The least positive number of FP16; a scale of 0 is refused by every runtime."""
_HALF_MAX = 65504.0


def round_scales_(model: ir.Model) -> int:
    """Round the scales of all Q/DQ nodes to FP16's numbers, in place; return how many changed.

    Codes of constant weights are kept where the rounded scale gives the same ones (always, but for
    scales below about 1e-5), else they are computed again.
    """
    changed = 0
    rounded: dict[str, ir.Value] = {}
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        old = constant_of(node.inputs[1])
        if old is None or old.dtype != np.float32 or float(old.max()) > _HALF_MAX:
            continue
        new = np.maximum(old.astype(np.float16).astype(np.float32), np.float32(SMALLEST_HALF))
        if np.array_equal(new, old):
            continue
        name = str(node.inputs[1].name)
        if name not in rounded:
            rounded[name] = new_constant_(model.graph, name, new)
            changed += 1
        node.replace_input_with(1, rounded[name])
        _rescale_codes_(model, node, old / new)
    _take_over_names_(model, rounded)
    return changed


def _rescale_codes_(model: ir.Model, node: ir.Node, ratio: np.ndarray) -> None:
    """Give a constant weight behind `node` the codes of its rounded scale."""
    codes = constant_of(node.inputs[0])
    if codes is None or codes.dtype != np.int8:
        return
    shape = [1] * codes.ndim
    if ratio.ndim:
        shape[node.attributes.get_int("axis", 1) % codes.ndim] = -1
    exact = codes.astype(np.float64) * ratio.astype(np.float64).reshape(shape)
    new = np.clip(np.rint(exact), -127, 127).astype(np.int8)
    if not np.array_equal(new, codes):
        set_constant_(model.graph, node, 0, new)


def _take_over_names_(model: ir.Model, rounded: dict[str, ir.Value]) -> None:
    constants = model.graph.initializers
    for name, value in rounded.items():
        if name in constants and not constants[name].uses():
            del constants[name]
            value.name = name
    for name, value in list(constants.items()):
        if not value.uses() and not value.is_graph_output():
            del constants[name]
