"""The products with weights of a graph: what INT8 can speed up, and how large each is.

Recognises MatMul, Gemm and Conv whose weight is a constant. Attention's products of two
activations are not here (`graph.attention`), nor is any decision to quantise (`compress`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class WeightSite:
    """One product of an activation with a constant weight."""

    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    output_axis: int
    """Axis of `weight` that holds the output channels."""
    input_axis: int
    """Axis of `weight` that holds the input channels (per group for a convolution)."""
    channel_axis: int
    """Axis of `activation` that holds the input channels: -1 for products, 1 for images."""
    groups: int = 1

    @property
    def name(self) -> str:
        """Node name, unique in the graph."""
        return str(self.node.name or self.node.outputs[0].name or self.node.op_type)

    @property
    def kind(self) -> str:
        """`MatMul`, `Gemm` or `Conv`."""
        return str(self.node.op_type)

    @property
    def activation_rank(self) -> int:
        """Number of axes of the activation.

        Raises:
            ValueError: the graph does not tell.
        """
        if self.kind == "Conv":
            return len(self.weight.const_value.shape)
        if self.kind == "Gemm":
            return 2
        if self.activation.shape is None:
            raise ValueError(f"the shape of '{self.activation.name}' is unknown")
        return len(self.activation.shape)

    def macs_per_position(self) -> int:
        """Return multiply-accumulates per token (products) or output pixel (convolutions)."""
        return int(np.prod(self.weight.const_value.shape.numpy()))


def find_weight_sites(model: ir.Model) -> list[WeightSite]:
    """Return the products with constant weights in graph order."""
    return [site for node in model.graph for site in _site_of(node)]


def _site_of(node: ir.Node) -> Iterator[WeightSite]:
    if node.op_type not in ("MatMul", "Gemm", "Conv") or node.domain not in ("", "ai.onnx"):
        return
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None or weight.const_value is None:
        return
    if activation.const_value is not None or weight.const_value.dtype != ir.DataType.FLOAT:
        return
    rank = len(weight.const_value.shape)
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        yield WeightSite(node, activation, weight, 0, 1, 1, groups)
    elif node.op_type == "MatMul" and rank == 2:
        yield WeightSite(node, activation, weight, 1, 0, -1)
    elif node.op_type == "Gemm" and rank == 2 and not node.attributes.get_int("transA", 0):
        if node.attributes.get_int("transB", 0):
            yield WeightSite(node, activation, weight, 0, 1, -1)
        else:
            yield WeightSite(node, activation, weight, 1, 0, -1)


def array_of(value: ir.Value) -> np.ndarray:
    """Return the constant of an initialiser as a NumPy array.

    Raises:
        ValueError: `value` is no constant.
    """
    if value.const_value is None:
        raise ValueError(f"'{value.name}' is not a constant")
    return np.asarray(value.const_value.numpy())


def kernel_matrix(site: WeightSite) -> np.ndarray:
    """Return the weight as float64 (in, out, kernel positions).

    A grouped convolution is given as (in, out / groups, kernel positions): each input channel
    with the outputs of its own group.
    """
    weight = array_of(site.weight).astype(np.float64)
    if site.kind != "Conv":
        return (weight if site.input_axis == 0 else weight.T)[:, :, None]
    outputs, per_group = weight.shape[:2]
    grouped = weight.reshape(site.groups, outputs // site.groups, per_group, -1)
    return grouped.transpose(0, 2, 1, 3).reshape(
        site.groups * per_group, outputs // site.groups, -1
    )


def add_initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant under a free name that starts with `name`; return its value."""
    free, number = name, 1
    while free in model.graph.initializers:
        free, number = f"{name}_{number}", number + 1
    tensor = ir.tensor(np.asarray(array, order="C"), name=free)
    value = ir.Value(
        name=free, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def remove_unused_initializers(model: ir.Model) -> None:
    """Drop constants that no node reads and that are no graph output."""
    outputs = set(model.graph.outputs)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del model.graph.initializers[name]
