"""FP32 graph -> FP16 graph with FP32 inputs and outputs.

The conversion itself is ONNX Runtime's (`onnxruntime.transformers.float16`).
"""

import onnx_ir as ir

# Their sums of squares leave FP16's range (65504) at ordinary activations; kept in FP32.
FLOAT32_OPERATORS = ("LayerNormalization", "GroupNormalization", "ReduceMean", "ReduceSum", "Pow")


def half_from_model(model: ir.Model) -> ir.Model:
    """Return the FP16 graph; inputs and outputs stay float32, LayerNorm computes in FP32.

    Weights beyond FP16's range are clipped to it by the converter, which the fidelity check
    of the artefact then sees.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    proto = convert_float_to_float16(
        ir.to_proto(model),
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FLOAT32_OPERATORS],
        disable_shape_infer=True,
    )
    return ir.from_proto(proto)
