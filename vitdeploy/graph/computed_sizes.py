"""Outputs whose size follows from the values of an input, which some runtimes cannot give.

TensorRT plans memory from shapes alone: a picture resized to the height and width that a float
input holds has none before that input is read. Sizes that follow from other sizes are no such case.
"""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.errors import ExportError

_SIZE_OPERANDS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Tile": (1,),
    "TopK": (1,),
}
"""By operator: the inputs whose values set the size of its outputs."""
_READS_SIZES_ONLY = ("Shape", "Size")


def computed_outputs(model: ir.Model) -> tuple[str, ...]:
    """Return the names of the graph outputs whose size follows from an input's values."""
    valued = set(model.graph.inputs)
    sized: set[ir.Value] = set()
    for node in model.graph:
        read = {value for value in node.inputs if value is not None}
        operands = _SIZE_OPERANDS.get(node.op_type, ())
        sizes = {node.inputs[index] for index in operands if index < len(node.inputs)}
        if read & sized or sizes & valued:
            sized.update(node.outputs)
        if read & valued and node.op_type not in _READS_SIZES_ONLY:
            valued.update(node.outputs)
    return tuple(str(value.name) for value in model.graph.outputs if value in sized)


def without_computed_outputs(model: ir.Model) -> ir.Model:
    """Return the graph without the outputs of `computed_outputs`, nor inputs that only they read.

    Raises:
        ExportError: no output would be left.
    """
    dropped = computed_outputs(model)
    if not dropped:
        return model
    if len(dropped) == len(model.graph.outputs):
        raise ExportError(
            f"the size of every output ({', '.join(dropped)}) follows from the values of an input, "
            "which this runtime cannot run. Fix the size in the graph, or use --target onnx."
        )
    copy = model.clone()
    outputs = copy.graph.outputs
    outputs[:] = [value for value in outputs if value.name not in dropped]
    RemoveUnusedNodesPass()(copy)
    inputs = copy.graph.inputs
    inputs[:] = [value for value in inputs if value.uses() or value in set(outputs)]
    return copy
