"""ONNX files as other tools write them, for tests of what reads them."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from tests.conftest import tiny_vit_graph


def tiny_proto() -> onnx.ModelProto:
    """`pixel_values` (batch, 3, 16, 16) -> `logits` (batch, 5), opset 20."""
    return ir.to_proto(tiny_vit_graph())


def write_onnx(path: Path, change: Callable[[onnx.ModelProto], object] | None = None) -> Path:
    """Write the tiny graph as `path` after `change` has edited it; return the path."""
    proto = tiny_proto()
    if change is not None:
        change(proto)
    onnx.save(proto, path)
    return path


def rename(proto: onnx.ModelProto, image: str, output: str) -> None:
    """Give the graph's input and output other names."""
    new = {proto.graph.input[0].name: image, proto.graph.output[0].name: output}
    for node in proto.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = new[value.name]


def set_input(proto: onnx.ModelProto, shape: list, kind: int = TensorProto.FLOAT) -> None:
    """Give the graph's input another declared shape and type."""
    name = proto.graph.input[0].name
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, kind, shape))


def fix_batch(proto: onnx.ModelProto, batch: int) -> None:
    """Declare a fixed batch on the input and on the output."""
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del proto.graph.value_info[:]


def add_output(
    proto: onnx.ModelProto, name: str, shape: list, kind: int = TensorProto.FLOAT
) -> None:
    """Make an inner value an output too."""
    proto.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
