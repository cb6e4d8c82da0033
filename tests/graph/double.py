"""Float64 evaluation of tiny ONNX graphs by ONNX's own reference: what folds are checked against.

ORT has no float64 convolution, and the reference's convolution is slow, so torch computes that one.
"""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

FLOAT64_LIMIT = 1e-9
"""Issue 3's bound on the relative error of a fold in float64 (rounding alone gives about 1e-14)."""
FLOAT32_LIMIT = 1e-5
"""Issue 3's bound for the float32 artefact: some hundred roundings of 6e-8 each."""


class Conv(OpRun):
    """Float64 convolution by torch."""

    def _run(  # noqa: PLR0917 (the reference passes inputs, then attributes by name)
        self,
        x: Any,
        w: Any,
        b: Any = None,
        auto_pad: Any = None,
        dilations: Any = None,
        group: Any = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> Any:
        import torch

        assert auto_pad in {None, "NOTSET"}
        left = pads or [0, 0, 0, 0]
        padded = torch.nn.functional.pad(
            torch.from_numpy(np.ascontiguousarray(x)), [left[1], left[3], left[0], left[2]]
        )
        bias = None if b is None else torch.from_numpy(np.array(b))
        result = torch.nn.functional.conv2d(
            padded, torch.from_numpy(np.array(w)), bias, strides or 1, 0, dilations or 1, group or 1
        )
        return (result.numpy(),)


def double_from_bytes(data: bytes) -> ir.Model:
    """Return the float32 model `data` with every float tensor in float64."""
    model = ir.from_proto(onnx.load_from_string(data))
    double_(model)
    return model


def double_(model: ir.Model) -> None:
    """Turn every float32 tensor, type and cast of `model` into float64."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        values.extend(node.outputs)
        for name, attribute in list(node.attributes.items()):
            if name == "to" and attribute.as_int() == ir.DataType.FLOAT.value:
                node.attributes["to"] = ir.AttrInt64("to", ir.DataType.DOUBLE.value)
            elif attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                if tensor.dtype == ir.DataType.FLOAT:
                    node.attributes[name] = ir.AttrTensor(
                        name, ir.tensor(tensor.numpy().astype(np.float64))
                    )
    for value in values:
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(
                value.const_value.numpy().astype(np.float64), name=value.name
            )
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.DOUBLE)


def run_reference(model: ir.Model, image: np.ndarray) -> np.ndarray:
    """Return the first output of `model` for `image`, in the dtype of the graph."""
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[Conv])
    return np.asarray(evaluator.run(None, {model.graph.inputs[0].name: image})[0])


def run_ort(model: ir.Model, image: np.ndarray) -> np.ndarray:
    """Return the first output of the float32 `model` for `image`, by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {model.graph.inputs[0].name: image})[0])


def images(model: ir.Model, count: int = 2, seed: int = 0) -> np.ndarray:
    """Return `count` seeded normal images (count, 3, H, W) float64 of the model's size."""
    height, width = (int(dim) for dim in list(model.graph.inputs[0].shape)[2:])
    return np.random.default_rng(seed).standard_normal((count, 3, height, width))


def relative_error(result: np.ndarray, reference: np.ndarray) -> float:
    """Return the norm of the difference over that of the reference's part that varies."""
    centred = reference - reference.mean(axis=0, keepdims=True)
    return float(np.linalg.norm(result - reference) / np.linalg.norm(centred))
