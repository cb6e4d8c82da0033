"""Affine layers of a graph (MatMul+Add, Gemm, Conv) behind one view with (out, in, ...) kernels.

A `Linear` looks its bias up each time it is asked, so it stays valid while folds add biases.
What reads or feeds the layer is the business of `layout` and of the folds.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.surgery import (
    Float64,
    constant_of,
    float_attribute,
    insert_after_,
    int_attribute,
    ints_attribute,
    new_constant_,
    other_input,
    set_constant_,
    sole_reader,
)


@dataclass(frozen=True)
class Linear:
    """One affine layer with a constant weight; make it with `linear_at`."""

    node: ir.Node
    """The MatMul, Gemm or Conv."""
    out_channels: int
    in_channels: int
    group: int = 1

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def data(self) -> ir.Value:
        """The activation that the layer reads."""
        return self.node.inputs[0]

    @property
    def weight(self) -> ir.Value:
        """The constant weight."""
        return self.node.inputs[1]

    @property
    def bias_add(self) -> ir.Node | None:
        """The Add that holds a MatMul's bias, if there is one."""
        if self.node.op_type != "MatMul":
            return None
        reader = sole_reader(self.node.outputs[0])
        if reader is None or reader.op_type != "Add":
            return None
        other = other_input(reader, self.node.outputs[0])
        array = constant_of(other)
        if array is None or array.ndim == 0 or array.size != self.out_channels:
            return None
        return reader if array.shape[-1] == self.out_channels else None

    @property
    def bias(self) -> ir.Value | None:
        """The constant bias, if there is one."""
        if self.node.op_type != "MatMul":
            return self.node.inputs[2] if len(self.node.inputs) > 2 else None
        add = self.bias_add
        return None if add is None else other_input(add, self.node.outputs[0])

    @property
    def output(self) -> ir.Value:
        """The result, bias included."""
        add = self.bias_add
        return (self.node if add is None else add).outputs[0]

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in `data` and `output`: 1 for Conv, else -1."""
        return 1 if self.node.op_type == "Conv" else -1


def linear_at(node: ir.Node | None) -> Linear | None:
    """Return the affine layer whose MatMul, Gemm or Conv is `node`, or None."""
    if node is None or node.domain not in {"", "ai.onnx"} or len(node.inputs) < 2:
        return None
    reader = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}.get(node.op_type)
    if reader is None or node.inputs[0] is None or constant_of(node.inputs[0]) is not None:
        return None
    weight = constant_of(node.inputs[1])
    return None if weight is None else reader(node, weight.shape)


def linear_of(value: ir.Value | None) -> Linear | None:
    """Return the affine layer whose result (bias included) is `value`, or None."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "Add":
        for operand in node.inputs:
            linear = linear_at(operand.producer() if operand is not None else None)
            if linear is not None and linear.output is value:
                return linear
        return None
    linear = linear_at(node)
    return linear if linear is not None and linear.output is value else None


def find_linears(graph: ir.Graph) -> list[Linear]:
    """Return every affine layer of `graph` in graph order."""
    found = (linear_at(node) for node in graph)
    return [linear for linear in found if linear is not None]


def _matmul(node: ir.Node, shape: tuple[int, ...]) -> Linear | None:
    return Linear(node, shape[1], shape[0]) if len(shape) == 2 else None


def _gemm(node: ir.Node, shape: tuple[int, ...]) -> Linear | None:
    plain = int_attribute(node, "transA", 0) == 0 and float_attribute(node, "alpha", 1.0) == 1.0
    if not plain or float_attribute(node, "beta", 1.0) != 1.0:
        return None
    out, into = shape if int_attribute(node, "transB", 0) else shape[::-1]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant_of(node.inputs[2])
        if bias is None or bias.size != out or bias.shape[-1] != out:
            return None
    return Linear(node, out, into)


def _conv(node: ir.Node, shape: tuple[int, ...]) -> Linear | None:
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant_of(node.inputs[2]) is None:
        return None
    group = int_attribute(node, "group", 1)
    return Linear(node, shape[0], shape[1] * group, group)


def is_padded(linear: Linear) -> bool:
    """Return whether a convolution pads its input with zeros."""
    if linear.node.op_type != "Conv":
        return False
    automatic = linear.node.attributes.get("auto_pad")
    if automatic is not None and automatic.as_string() not in {"NOTSET", "VALID"}:
        return True
    return any(ints_attribute(linear.node, "pads") or [])


def kernel_of(linear: Linear) -> Float64:
    """Return the weight as float64 of shape (out, in / group, *window)."""
    weight = constant_of(linear.weight)
    assert weight is not None
    array: Float64 = weight.astype(np.float64)
    return array.T if _is_transposed(linear) else array


def bias_of(linear: Linear) -> Float64:
    """Return the bias as float64 of shape (out,); zeros where the layer has none."""
    bias = constant_of(linear.bias)
    if bias is None:
        return np.zeros(linear.out_channels)
    array: Float64 = bias.astype(np.float64).reshape(-1)
    return array


def set_kernel_(graph: ir.Graph, linear: Linear, kernel: Float64) -> None:
    """Store `kernel` (out, in / group, *window) as the layer's weight, cast to its dtype."""
    set_constant_(graph, linear.node, 1, kernel.T if _is_transposed(linear) else kernel)


def set_bias_(graph: ir.Graph, linear: Linear, bias: Float64) -> None:
    """Store `bias` (out,) as the layer's bias, cast to its dtype; a missing bias is added.

    A MatMul without bias gets an Add behind it, unless `bias` is all zero.
    """
    old = linear.bias
    if old is None:
        if np.any(bias):
            _add_bias_(graph, linear, bias)
        return
    add = linear.bias_add
    shape = constant_of(old).shape  # type: ignore[union-attr]
    if add is None:
        set_constant_(graph, linear.node, 2, bias.reshape(shape))
    else:
        index = 1 if add.inputs[0] is linear.node.outputs[0] else 0
        set_constant_(graph, add, index, bias.reshape(shape))


def _add_bias_(graph: ir.Graph, linear: Linear, bias: Float64) -> None:
    dtype = constant_of(linear.weight).dtype  # type: ignore[union-attr]
    value = new_constant_(graph, f"{linear.name}.bias", bias.astype(dtype))
    if linear.node.op_type != "MatMul":
        linear.node.resize_inputs(3)
        linear.node.replace_input_with(2, value)
        return
    product = linear.node.outputs[0]
    add = ir.node("Add", [product, value], name=f"{linear.name}/bias")
    insert_after_(product, add)
    if add.outputs[0].name is None:
        add.outputs[0].name = f"{linear.name}/bias_output"


def scale_outputs_(graph: ir.Graph, linear: Linear, factor: Float64) -> None:
    """Multiply the result of the layer by `factor` (out,)."""
    kernel = kernel_of(linear)
    set_kernel_(graph, linear, kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1)))
    if linear.bias is not None:
        set_bias_(graph, linear, bias_of(linear) * factor)


def scale_inputs_(graph: ir.Graph, linear: Linear, factor: Float64) -> None:
    """Let the layer read its data as if multiplied by `factor` (in,); needs `group` 1."""
    assert linear.group == 1
    kernel = kernel_of(linear)
    set_kernel_(graph, linear, kernel * factor.reshape(1, -1, *[1] * (kernel.ndim - 2)))


def shift_inputs_(graph: ir.Graph, linear: Linear, shift: Float64) -> None:
    """Let the layer read its data as if `shift` (in,) were added; needs an unpadded layer."""
    assert linear.group == 1
    assert not is_padded(linear)
    kernel = kernel_of(linear)
    window = kernel.reshape(kernel.shape[0], kernel.shape[1], -1).sum(axis=2)
    set_bias_(graph, linear, bias_of(linear) + window @ shift)


def rotate_outputs_(graph: ir.Graph, linear: Linear, rotation: Float64) -> None:
    """Make the result y of the layer, a row of out channels, into y @ rotation (out, out)."""
    kernel = kernel_of(linear)
    set_kernel_(graph, linear, np.tensordot(rotation.T, kernel, axes=(1, 0)))
    if linear.bias is not None:
        set_bias_(graph, linear, bias_of(linear) @ rotation)


def rotate_inputs_(graph: ir.Graph, linear: Linear, rotation: Float64) -> None:
    """Let the layer read rows x as x @ rotation.T, the inverse of a rotation of its data."""
    assert linear.group == 1
    kernel = kernel_of(linear)
    set_kernel_(graph, linear, np.moveaxis(np.tensordot(kernel, rotation, axes=(1, 0)), -1, 1))


def _is_transposed(linear: Linear) -> bool:
    if linear.node.op_type == "Gemm":
        return int_attribute(linear.node, "transB", 0) == 0
    return bool(linear.node.op_type == "MatMul")
