"""Puts resizing, cropping, normalising and layout in front of a graph, for ONNX Runtime.

Its antialiased `Resize` of uint8 is Pillow's algorithm, whole levels after each axis included;
other runtimes read that operator otherwise (TensorRT not at all), so only `onnx` gets it.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from vitdeploy.data import Preprocess
from vitdeploy.data.baked import PICTURES, frame_size

_PREFIX = "preprocess/"


def with_preprocessing(model: ir.Model, preprocess: Preprocess) -> ir.Model:
    """Return a copy of `model` that reads `PICTURES` of any size instead of normalised pixels.

    Args:
        model: opset 18 or above; its first input is pixels (batch, 3, height, width) float32.
        preprocess: one without an `unbakeable_reason`.
    """
    result = model.clone()
    pixels = result.graph.inputs[0]
    batch = (pixels.shape or ["batch"])[0]
    shape = ir.Shape([batch, "picture_height", "picture_width", 3])
    pictures = ir.Value(name=PICTURES, shape=shape, type=ir.TensorType(ir.DataType.UINT8))
    steps = _Steps()
    made = steps.pixels(pictures, preprocess)
    made.name, made.shape, made.type = f"{_PREFIX}{pixels.name}", pixels.shape, pixels.type
    result.graph.inputs[0] = pictures
    ir.convenience.replace_all_uses_with(pixels, made)
    first = next(iter(result.graph))
    result.graph.insert_before(first, steps.nodes)
    for value in steps.constants:
        result.graph.register_initializer(value)
    return result


def preprocessing_graph(preprocess: Preprocess, opset: int) -> ir.Model:
    """Return the preprocessing alone: `PICTURES` -> `pixel_values` (batch, 3, height, width)."""
    shape = ir.Shape(["batch", 3, *preprocess.size])
    pixels = ir.Value(name="any", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    same = ir.node("Identity", [pixels], name="same")
    output = same.outputs[0]
    output.name, output.shape, output.type = "pixel_values", shape, pixels.type
    graph = ir.Graph(
        [pixels], [output], nodes=[same], opset_imports={"": opset}, name="preprocessing"
    )
    return with_preprocessing(ir.Model(graph, ir_version=10), preprocess)


class _Steps:
    """Builds the nodes."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def pixels(self, pictures: ir.Value, preprocess: Preprocess) -> ir.Value:
        """Return normalised pixels (batch, 3, height, width) of pictures."""
        op = self._op
        target = self._scaled_size(op("Shape", pictures, start=1, end=3), preprocess)
        planes = op("Transpose", pictures, perm=[0, 3, 1, 2])
        leading = op("Shape", planes, start=0, end=2)
        resized = op(
            "Resize",
            planes,
            None,
            None,
            op("Concat", leading, target, axis=0),
            mode={"bilinear": "linear", "bicubic": "cubic"}[preprocess.interpolation],
            antialias=1,
            exclude_outside=1,
            cubic_coeff_a=-0.5,
            coordinate_transformation_mode="half_pixel",
        )
        kept = self._integers(preprocess.size)
        first = self._half_rounded(op("Sub", target, kept))
        cropped = op("Slice", resized, first, op("Add", first, kept), self._integers([2, 3]))
        levels = op("Cast", cropped, to=ir.DataType.FLOAT)
        # in the host's order, so that rounding is the same
        mean, std = (
            self._constant(np.reshape(value, (1, 3, 1, 1)), np.float32)
            for value in (preprocess.mean, preprocess.std)
        )
        shares = op("Div", levels, self._constant(255.0, np.float32))
        return op("Div", op("Sub", shares, mean), std)

    def _scaled_size(self, size: ir.Value, preprocess: Preprocess) -> ir.Value:
        """Return the (height, width) that pictures of `size` are resized to."""
        frame = self._integers(frame_size(preprocess))
        if preprocess.crop_mode == "squash":
            return frame
        short = self._op("ReduceMin", size, keepdims=1)
        return self._op("Div", self._op("Mul", frame, size), short)

    def _half_rounded(self, spare: ir.Value) -> ir.Value:
        """Return half of whole numbers, rounded to the even one, as Python does."""
        op, two = self._op, self._integers([2])
        half = op("Div", spare, two)
        return op("Add", half, op("Mul", op("Mod", spare, two), op("Mod", half, two)))

    def _op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Return the output of a new node."""
        number = len(self.nodes)
        node = ir.node(kind, inputs, attributes, name=f"{_PREFIX}{number}/{kind}")
        node.outputs[0].name = f"{_PREFIX}{number}"
        self.nodes.append(node)
        return node.outputs[0]

    def _integers(self, values: ArrayLike) -> ir.Value:
        return self._constant(values, np.int64)

    def _constant(self, values: ArrayLike, kind: type[np.generic]) -> ir.Value:
        array = np.asarray(values, kind)
        name = f"{_PREFIX}constant_{len(self.constants)}"
        value = ir.Value(
            name=name,
            const_value=ir.tensor(array, name=name),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        self.constants.append(value)
        return value
