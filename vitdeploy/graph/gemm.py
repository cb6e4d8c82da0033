"""Gemm with a constant weight -> MatMul and Add, the form every runtime has an INT8 kernel for.

ONNX Runtime has no INT8 Gemm with a float bias; its INT8 MatMul takes one.
"""

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.sites import add_initializer, array_of, remove_unused_initializers


def matmul_from_gemm_(model: ir.Model) -> int:
    """Replace every Gemm whose weight (and bias, if any) is constant; return how many.

    alpha goes into the weight, beta into the bias; a Gemm with transA stays.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type == "Gemm" and _is_linear(node):
            _replace(model, node)
            count += 1
    remove_unused_initializers(model)
    return count


def _is_linear(node: ir.Node) -> bool:
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.attributes.get_int("transA", 0) or weight is None or weight.const_value is None:
        return False
    return bias is None or bias.const_value is not None


def _replace(model: ir.Model, node: ir.Node) -> None:
    weight_value = node.inputs[1]
    assert weight_value is not None
    weight = array_of(weight_value)
    if node.attributes.get_int("transB", 0):
        weight = weight.T
    alpha = node.attributes.get_float("alpha", 1.0)
    beta = node.attributes.get_float("beta", 1.0)
    name = str(weight_value.name)
    scaled = (weight * np.float32(alpha)).astype(weight.dtype) if alpha != 1.0 else weight
    own = add_initializer(model, f"{name}.transposed", scaled)
    product = ir.node("MatMul", [node.inputs[0], own], name=node.name)
    output = node.outputs[0]
    nodes, result = [product], product.outputs[0]
    result.shape, result.dtype = output.shape, output.dtype
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = node.inputs[2]
        if beta != 1.0:
            bias = add_initializer(
                model, f"{bias.name}.scaled", (array_of(bias) * np.float32(beta)).astype("f4")
            )
        result.name = f"{output.name}_product"
        add = ir.node("Add", [result, bias], name=f"{node.name}/bias")
        nodes.append(add)
        result = add.outputs[0]
        result.shape, result.dtype = output.shape, output.dtype
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [output], [result])
