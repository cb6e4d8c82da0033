"""FP32 graph -> FP16 graph in which every operator's types agree, with FP32 inputs and outputs.

Each node computes in FP16 or FP32; a Cast stands wherever a value changes type, and nowhere else.
Q/DQ pairs are converted too: the type of a scale is the type of what comes out, which is how a
strongly typed TensorRT network is told. Which tensors FP16 cannot hold is measured in
`targets.overflow`.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.surgery import fresh_name, new_constant_

FLOAT32_OPERATORS = frozenset(
    {
        "Softmax",
        "LayerNormalization",
        "RMSNormalization",
        "GroupNormalization",
        "InstanceNormalization",
    }
    | {"BatchNormalization", "LpNormalization", "ReduceMean", "ReduceSum", "ReduceL2"}
    | {"ReduceSumSquare", "Pow", "Range", "CumSum"}
)
"""Their sums of squares leave FP16's range (65504) at ordinary activations, or FP16 has no such
operator."""
_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that ONNX defines as float32 whatever the data is."""
FP16_MAX = 65504.0
_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def half_from_model(model: ir.Model, float32_nodes: Collection[str] = ()) -> ir.Model:
    """Return the FP16 graph; inputs and outputs stay float32, LayerNorm computes in FP32.

    Constants beyond FP16's range are clipped to it (masks of -1e9, say), which the fidelity check
    of the artefact then sees.

    Args:
        model: FP32 graph, with or without Q/DQ; not changed.
        float32_nodes: names of further nodes that compute in FP32.
    """
    result = model.clone()
    types = _Types(result, frozenset(float32_nodes))
    for node in list(result.graph):
        types.convert_(node)
    for position, value in enumerate(list(result.graph.outputs)):
        types.restore_output_(position, value)
    types.finish_()
    return result


class _Types:
    """The types that values were given so far, and the casts between them."""

    def __init__(self, model: ir.Model, float32_nodes: frozenset[str]) -> None:
        self._graph = model.graph
        self._float32_nodes = float32_nodes
        self._casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        self._halves: dict[str, ir.Value] = {}

    def convert_(self, node: ir.Node) -> None:
        """Give the float inputs and outputs of `node` the type that it computes in."""
        wanted = self._type_of(node)
        kept = _FLOAT32_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_HALF, _FLOAT):
                target = _FLOAT if index in kept else wanted
                node.replace_input_with(index, self._as(value, target, node))
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", wanted.value)
        if node.op_type in ("Constant", "ConstantOfShape") and wanted == _HALF:
            _make_half_(node)
        for value in node.outputs:
            if value.dtype == _FLOAT:
                value.type = ir.TensorType(wanted)  # a new object: clones share theirs

    def restore_output_(self, position: int, value: ir.Value) -> None:
        """Let a graph output be float32 under its own name."""
        producer = value.producer()
        if value.dtype != _HALF or producer is None:
            return
        name = str(value.name)
        value.name = fresh_name(self._graph, f"{name}_half")
        cast = ir.node("Cast", [value], attributes={"to": _FLOAT.value}, name=f"{name}/Cast")
        output = cast.outputs[0]
        output.name, output.shape, output.type = name, value.shape, ir.TensorType(_FLOAT)
        self._graph.insert_after(producer, cast)
        self._graph.outputs[position] = output

    def finish_(self) -> None:
        """Drop the FP32 constants that nothing reads now; the FP16 ones take their names."""
        constants = self._graph.initializers
        for name, half in self._halves.items():
            single = constants[name]
            if not single.uses() and not single.is_graph_output():
                del constants[name]
                half.name = name

    def _type_of(self, node: ir.Node) -> ir.DataType:
        if self._stays(node):
            return _FLOAT
        if node.op_type == "DequantizeLinear":
            # A Cast between it and its product would keep the product out of INT8.
            readers = [use.node for use in node.outputs[0].uses()]
            if readers and all(self._stays(reader) for reader in readers):
                return _FLOAT
        return _HALF

    def _stays(self, node: ir.Node) -> bool:
        return node.op_type in FLOAT32_OPERATORS or str(node.name) in self._float32_nodes

    def _as(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        """Return `value` in type `wanted`: itself, a converted constant, or behind a Cast."""
        if value.dtype == wanted:
            return value
        name = str(value.name)
        if value.const_value is not None and not value.is_graph_input():
            if name not in self._halves:
                self._halves[name] = self._half_constant(value)
            return self._halves[name]
        key = (name, wanted)
        if key not in self._casts:
            suffix = "half" if wanted == _HALF else "float"
            cast = ir.node(
                "Cast",
                [value],
                attributes={"to": wanted.value},
                name=f"{name}/Cast_{suffix}",
            )
            output = cast.outputs[0]
            output.name = fresh_name(self._graph, f"{name}_{suffix}")
            output.shape, output.type = value.shape, ir.TensorType(wanted)
            self._graph.insert_before(reader, cast)
            self._casts[key] = output
        return self._casts[key]

    def _half_constant(self, value: ir.Value) -> ir.Value:
        array = half_array(np.asarray(value.const_value.numpy()))
        return new_constant_(self._graph, f"{value.name}_half", array)


def half_array(array: np.ndarray) -> np.ndarray:
    """Return float32 numbers as float16: clipped to its range, infinities kept."""
    clipped = np.where(np.isinf(array), array, np.clip(array, -FP16_MAX, FP16_MAX))
    return clipped.astype(np.float16)


def _make_half_(node: ir.Node) -> None:
    for name in ("value", "value_float", "value_floats"):
        attribute = node.attributes.get(name)
        if attribute is None:
            continue
        if name == "value":
            tensor = attribute.as_tensor()
            if tensor.dtype != _FLOAT:
                return
            array = np.asarray(tensor.numpy())
        else:
            array = np.asarray(attribute.value, np.float32)
        del node.attributes[name]
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(half_array(array)))
