"""How much a graph computes: multiply-accumulates of its convolutions and matrix products."""

import onnx_ir as ir

from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.layout_ops import Shapes
from vitdeploy.graph.surgery import int_attribute

PRODUCTS = ("Conv", "Gemm", "MatMul")


def macs_by_node(model: ir.Model, batch: int = 1) -> dict[str, int | None]:
    """Return multiply-accumulates per image of every product by node name, in graph order.

    None stands for a product whose shape does not follow from that of the inputs.

    Args:
        model: a graph whose nodes have unique names.
        batch: images the shapes are taken at; a fixed batch must be given.
    """
    shapes = concrete_shapes(model, batch)
    counted: dict[str, int | None] = {}
    for node in model.graph:
        if node.op_type in PRODUCTS and node.domain in ("", "ai.onnx"):
            macs = _macs(node, shapes)
            counted[str(node.name)] = None if macs is None else macs // batch
    return counted


def _macs(node: ir.Node, shapes: Shapes) -> int | None:
    output = shapes.get(str(node.outputs[0].name))
    data, weight = (shapes.get(_name(value)) for value in node.inputs[:2])
    if output is None or data is None or weight is None:
        return None
    total = 1
    for size in output:
        total *= size
    if node.op_type == "Conv":
        for size in weight[1:]:
            total *= size
        return total
    return total * data[0 if int_attribute(node, "transA", 0) else -1]


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)
