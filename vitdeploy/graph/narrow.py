"""int64 indices -> int32 where ONNX allows both and every value fits.

TensorRT computes indices in 32 bits; values beyond them are only ever "to the end" of a Slice.
Shapes and axes of other operators have to be int64 in ONNX and stay.
"""

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.surgery import Array, constant_of, new_constant_

_INDEX_INPUTS = {"Gather": (1,), "GatherElements": (1,), "ScatterElements": (1,)}
_INT32 = np.iinfo(np.int32)


def narrow_indices_(model: ir.Model) -> int:
    """Make constant int64 indices int32, in place; return how many inputs changed."""
    changed = 0
    narrowed: dict[str, ir.Value] = {}
    for node in model.graph:
        inputs = _index_inputs(node)
        found = [constant_of(node.inputs[index]) for index in inputs]
        arrays = [array for array in found if array is not None and array.dtype == np.int64]
        if len(arrays) < len(inputs) or not (node.op_type == "Slice" or all(map(_fits, arrays))):
            continue
        for index, array in zip(inputs, arrays, strict=True):
            name = str(node.inputs[index].name)
            if name not in narrowed:
                small = np.clip(array, _INT32.min, _INT32.max).astype(np.int32)
                narrowed[name] = new_constant_(model.graph, name, small)
            node.replace_input_with(index, narrowed[name])
            changed += 1
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    return changed


def _index_inputs(node: ir.Node) -> tuple[int, ...]:
    if node.op_type == "Slice":  # its starts, ends, axes and steps must be of one type
        return tuple(i for i in range(1, len(node.inputs)) if node.inputs[i] is not None)
    return _INDEX_INPUTS.get(node.op_type, ())


def _fits(array: Array) -> bool:
    numbers = array.astype(np.int64)
    return bool(np.all((numbers >= _INT32.min) & (numbers <= _INT32.max)))
