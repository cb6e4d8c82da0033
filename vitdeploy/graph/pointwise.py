"""1x1 convolutions as MatMul over channels-last, for runtimes whose INT8 convolution costs more.

ONNX Runtime runs a convolution in INT8 only if its output is quantised too, which adds noise that
an INT8 MatMul does not. Its own optimiser cancels the transposes between two such products.
"""

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.sites import add_initializer, array_of, remove_unused_initializers


def matmul_from_pointwise_conv_(model: ir.Model) -> int:
    """Replace every dense 1x1 convolution of stride 1 with constant weights; return how many."""
    count = 0
    for node in list(model.graph):
        if node.op_type == "Conv" and _is_pointwise(node):
            _replace(model, node)
            count += 1
    remove_unused_initializers(model)
    return count


def _is_pointwise(node: ir.Node) -> bool:
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.const_value is None:
        return False
    if bias is not None and bias.const_value is None:
        return False
    shape = tuple(weight.const_value.shape.numpy())
    attributes = node.attributes
    return (
        len(shape) == 4
        and shape[2:] == (1, 1)
        and attributes.get_int("group", 1) == 1
        and set(attributes.get_ints("strides", (1, 1))) == {1}
        and set(attributes.get_ints("pads", (0, 0, 0, 0))) == {0}
    )


def _replace(model: ir.Model, node: ir.Node) -> None:
    weight_value, output = node.inputs[1], node.outputs[0]
    assert weight_value is not None
    assert node.inputs[0] is not None
    name = str(node.name)
    weight = array_of(weight_value)[:, :, 0, 0].T
    own = add_initializer(model, f"{weight_value.name}.matmul", weight)
    into = ir.node(
        "Transpose", [node.inputs[0]], attributes={"perm": [0, 2, 3, 1]}, name=f"{name}/to_last"
    )
    last = into.outputs[0]
    last.name = f"{node.inputs[0].name}_channels_last_{output.name}"
    last.dtype = output.dtype
    last.shape = _moved(node.inputs[0].shape, (0, 2, 3, 1))
    product = ir.node("MatMul", [last, own], name=name)
    product.outputs[0].name = f"{output.name}_product"
    nodes, result = [into, product], product.outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = add_initializer(model, f"{name}.matmul_bias", np.asarray(array_of(node.inputs[2])))
        add = ir.node("Add", [result, bias], name=f"{name}/bias")
        add.outputs[0].name = f"{output.name}_channels_last"
        nodes.append(add)
        result = add.outputs[0]
    for made in nodes[1:]:
        made.outputs[0].dtype = output.dtype
        made.outputs[0].shape = _moved(output.shape, (0, 2, 3, 1))
    back = ir.node(
        "Transpose", [result], attributes={"perm": [0, 3, 1, 2]}, name=f"{name}/to_first"
    )
    back.outputs[0].dtype, back.outputs[0].shape = output.dtype, output.shape
    nodes.append(back)
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], nodes, [output], [back.outputs[0]]
    )


def _moved(shape: ir.Shape | None, order: tuple[int, ...]) -> ir.Shape | None:
    """Return a 4-D shape with its axes reordered; four unknown axes where it is not known."""
    if shape is None:
        return ir.Shape([None, None, None, None])
    return ir.Shape([shape[axis] for axis in order])
