"""Slices that say their steps: TensorRT for RTX 1.7 refuses those that leave them to the default.

It gives the default one step per axis of the tensor, and then misses that `starts` has fewer.
"""

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.sites import add_initializer

_STARTS, _AXES, _STEPS = 1, 3, 4


def write_slice_steps_(model: ir.Model) -> None:
    """Give every Slice without steps its default, ones; the function stays the same.

    Only where `starts` is a constant, whose length is then known.
    """
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Slice" or node.domain not in ("", "ai.onnx"):
            continue
        given = node.inputs[_STEPS] if len(node.inputs) > _STEPS else None
        starts = node.inputs[_STARTS]
        constant = None if starts is None else ir.convenience.get_const_tensor(starts)
        if given is not None or constant is None:
            continue
        ones = np.ones(constant.numpy().shape, constant.numpy().dtype)
        steps = add_initializer(model, f"{node.name}_steps", ones)
        node.resize_inputs(max(len(node.inputs), _STEPS + 1))
        node.replace_input_with(_STEPS, steps)
