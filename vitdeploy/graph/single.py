"""FP16 graph -> the same graph in FP32, constants as FP16 rounded them: `half` undone.

For looking at what INT8 alone does in a graph whose float layers are FP16; nothing runs it in
earnest.
"""

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.surgery import remove_dead_, replace_

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_FLOATS = (_HALF, _FLOAT)


def has_half(model: ir.Model) -> bool:
    """Return whether a value of the graph is FP16."""
    values = [value for node in model.graph for value in node.outputs]
    return any(value.dtype == _HALF for value in (*values, *model.graph.initializers.values()))


def single_from_half(model: ir.Model) -> ir.Model:
    """Return the graph with every FP16 tensor in FP32 and without the casts between the two.

    Args:
        model: as `half_from_model` makes it; names of nodes and outputs stay. Not changed.
    """
    result = model.clone()
    for value in result.graph.initializers.values():
        if value.dtype == _HALF and value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.type = ir.TensorType(_FLOAT)
    for node in list(result.graph):
        _widen_(result.graph, node)
    remove_dead_(result.graph)
    return result


def _widen_(graph: ir.Graph, node: ir.Node) -> None:
    """Let a node make FP32; a Cast between FP16 and FP32 goes."""
    for value in node.outputs:
        if value.dtype == _HALF:
            value.type = ir.TensorType(_FLOAT)  # a new object: clones share theirs
    value = node.attributes.get("value")
    if value is not None and value.type == ir.AttributeType.TENSOR:
        tensor = value.as_tensor()
        if tensor.dtype == _HALF:
            wide = ir.tensor(tensor.numpy().astype(np.float32))
            node.attributes["value"] = ir.AttrTensor("value", wide)
    if node.op_type != "Cast" or node.attributes["to"].as_int() not in _FLOATS:
        return
    source = node.inputs[0]
    if source is not None and source.dtype in _FLOATS:
        replace_(graph, node.outputs[0], source)
    else:
        node.attributes["to"] = ir.AttrInt64("to", _FLOAT.value)
