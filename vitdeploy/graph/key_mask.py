"""Widens masks by key to one row a head, which computes the same.

OpenVINO 2026.4 in bf16 gives NaN or wrong values for MatMul -> Add -> Softmax -> MatMul with a mask
of shape (1, 1, 1, keys), constant or not; (1, heads, 1, keys) is right. No fix is known of.
"""

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.surgery import constant_of, set_constant_


def widen_key_masks_(model: ir.Model) -> int:
    """Widen in place the constant masks added to scores (batch, heads, queries, keys).

    Returns:
        How many were widened.
    """
    count = 0
    for node in model.graph:
        if node.op_type != "Softmax":
            continue
        add = node.inputs[0].producer() if node.inputs[0] is not None else None
        if add is None or add.op_type != "Add":
            continue
        for index, scores in ((1, add.inputs[0]), (0, add.inputs[1])):
            mask = constant_of(add.inputs[index])
            heads = _heads(scores)
            if mask is not None and heads is not None and mask.size == mask.shape[-1] > 1:
                wide = np.broadcast_to(mask.reshape(1, 1, 1, -1), (1, heads, 1, mask.size))
                set_constant_(model.graph, add, index, np.ascontiguousarray(wide))
                count += 1
                break
    return count


def _heads(scores: ir.Value | None) -> int | None:
    """Return the second of four axes, where it is known and more than one."""
    if scores is None or scores.shape is None or len(scores.shape) != 4:
        return None
    heads = scores.shape[1]
    return heads if isinstance(heads, int) and heads > 1 else None
