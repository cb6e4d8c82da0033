"""Evaluates nodes whose inputs are all constant; what is left to do with them is `cleanup`'s."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from vitdeploy.graph.surgery import Array, constant_of, new_constant_, replace_

FOLD_LIMIT = 1 << 24
"""Elements above which a constant result is not stored: 64 MiB of float32."""

_NOT_FOLDED = frozenset(
    {"Constant", "Dropout", "QuantizeLinear", "DequantizeLinear"}
    | {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
)


def fold_constants_(model: ir.Model) -> dict[str, Array]:
    """Replace nodes of constant inputs by their results, and return those by the values' names.

    onnxscript's folder logs a warning for each node of several outputs (RoPE's Split) and leaves
    it; evaluating with ONNX's own reference does not.
    """
    opsets = [onnx.helper.make_opsetid(name, v) for name, v in model.opset_imports.items()]
    results: dict[str, Array] = {}
    for node in list(model.graph):
        arrays = _foldable_inputs(node)
        if arrays is None:
            continue
        for value, result in zip(node.outputs, _evaluate(node, arrays, opsets), strict=True):
            array = np.asarray(result)
            if array.size <= FOLD_LIMIT:
                results[str(value.name)] = array
                replace_(model.graph, value, new_constant_(model.graph, str(value.name), array))
    return results


def _evaluate(
    node: ir.Node, feeds: dict[str, Array], opsets: list[onnx.OperatorSetIdProto]
) -> list[Array]:
    """Return the outputs of `node`, by a function of one node: that one knows its opset."""
    proto = ir.to_proto(node)
    names = [list(feeds), list(proto.output)]
    function = onnx.helper.make_function("folded", "node", *names, [proto], opsets)
    results: list[Array] = ReferenceEvaluator(function).run(None, feeds, attributes={})
    return results


def _foldable_inputs(node: ir.Node) -> dict[str, Array] | None:
    """Return the arrays of the inputs of `node` by name where all are constant, or None."""
    if node.domain or node.op_type in _NOT_FOLDED or not node.inputs:
        return None
    if any(value.is_graph_output() or not value.name for value in node.outputs):
        return None
    arrays: dict[str, Array] = {}
    for value in node.inputs:
        array = constant_of(value)
        if array is not None and array.size <= FOLD_LIMIT:
            arrays[str(value.name)] = array
        elif value is not None:
            return None
    return arrays or None
