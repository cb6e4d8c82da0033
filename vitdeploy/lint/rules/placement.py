"""Rules about where Q/DQ pairs cost accuracy or time and bring nothing."""

from collections.abc import Iterator

import onnx_ir as ir

from vitdeploy.graph.surgery import int_attribute, readers
from vitdeploy.lint.attention import attentions
from vitdeploy.lint.graph import LintGraph, input_of, name_of
from vitdeploy.lint.qdq import Qdq, dequantized_by, has_qdq, is_activation, qdq_nodes
from vitdeploy.lint.rule import Finding, Rule, found
from vitdeploy.lint.versions import TensorRT

_FLOAT_OPERATORS = frozenset(
    {"LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"}
    | {"Softmax", "Gelu", "Erf", "Tanh", "Sigmoid"}
)
_FEWEST_CHANNELS = 16


def _kept_float(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        if not view.dequantizes:
            continue
        result = view.node.outputs[0]
        users = readers(result)
        if is_activation(graph, view):
            for node, _ in users:
                if node.op_type in _FLOAT_OPERATORS:
                    yield found(view.node, f"the input of {name_of(node)} is quantised")
            if result.is_graph_output():
                yield found(view.node, f"the graph's output '{result.name}' is quantised")
        elif any(_is_bias(graph, node, index) for node, index in users):
            yield found(view.node, f"the bias '{view.data.name}' is quantised")


def _is_bias(graph: LintGraph, node: ir.Node, index: int) -> bool:
    if node.op_type in {"Conv", "Gemm", "ConvTranspose"}:
        return index == 2
    return node.op_type == "Add" and not graph.is_static(node.outputs[0])


def _residual(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    biases = {bias for site in attentions(graph) for bias in site.biases}
    for node in graph.of("Add"):
        quantized = [
            view for value in node.inputs if (view := dequantized_by(graph, value)) is not None
        ]
        is_residual = not any(graph.is_static(v) or v in biases for v in node.inputs)
        if is_residual and any(is_activation(graph, view) for view in quantized):
            names = ", ".join(str(view.node.outputs[0].name) for view in quantized)
            yield found(node, f"it adds '{names}', which is quantised")


def _small_products(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for node in graph.of("MatMul", "Gemm", "Conv"):
        left = dequantized_by(graph, input_of(node, 0))
        right = dequantized_by(graph, input_of(node, 1))
        if left is None or right is None:
            continue
        yield from (
            _small_conv(graph, node, right)
            if node.op_type == "Conv"
            else _small_matmul(graph, node)
        )


def _small_conv(graph: LintGraph, node: ir.Node, weight: Qdq) -> Iterator[Finding]:
    shape = graph.shape(weight.data)
    if shape is None or len(shape) < 2 or shape[0] is None or shape[1] is None:
        return
    if min(shape[0], shape[1]) < _FEWEST_CHANNELS:
        yield found(node, f"an INT8 convolution of {shape[1]} to {shape[0]} channels")


def _small_matmul(graph: LintGraph, node: ir.Node) -> Iterator[Finding]:
    rows, columns = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
    by_column = int_attribute(node, "transA", 0), int_attribute(node, "transB", 0)
    m = None if rows is None else 1 if len(rows) < 2 else rows[-1 if by_column[0] else -2]
    n = None if columns is None else 1 if len(columns) < 2 else columns[-2 if by_column[1] else -1]
    if 1 in {m, n}:
        yield found(node, f"an INT8 product with M = {m or '?'} and N = {n or '?'}")


KEPT_FLOAT = Rule(
    25,
    "kept-float",
    "warning",
    "norms, softmax inputs, GELU, biases and outputs in float",
    "quantising them costs accuracy and splits fused kernels, and none of them gets faster",
    "take this Q/DQ pair off",
    has_qdq,
    _kept_float,
)
RESIDUAL = Rule(
    26,
    "residual",
    "warning",
    "the residual stream in float",
    "Q/DQ on it costs accuracy and brings no speed on TensorRT",
    "let the Add read the float value, the product its quantised copy",
    has_qdq,
    _residual,
)
SMALL_PRODUCTS = Rule(
    27,
    "small-products",
    "warning",
    f"INT8 for products of more than one row and column, and of {_FEWEST_CHANNELS} channels",
    "smaller ones have no INT8 kernel, or one that is slower than FP16's",
    "leave this product in float",
    has_qdq,
    _small_products,
)
