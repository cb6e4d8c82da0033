"""Raises the opset of a graph from elsewhere, and refuses what no pass here can read."""

import onnx

from vitdeploy.errors import ModelError

STANDARD_DOMAINS = ("", "ai.onnx")
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"}
    | {"ConvInteger", "QLinearMatMul", "QLinearConv"}
)


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the standard operators that the file uses; 0 where it names none."""
    versions = [o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS]
    return max(versions, default=0)


def require_plain(proto: onnx.ModelProto, shown: str) -> None:
    """Return where the file is an FP32 graph of standard operators, its functions inlined.

    Raises:
        ModelError: control flow, quantised nodes, operators of a runtime's own, or weights in
            half precision.
    """
    for node in proto.graph.node:
        if node.op_type in CONTROL_FLOW:
            raise ModelError(
                f"'{shown}' has control flow ({node.op_type} {node.name}); export it with fixed "
                "control flow, for one image size."
            )
        if node.op_type in QUANTIZED:
            raise ModelError(
                f"'{shown}' is already quantised ({node.op_type} {node.name}); give the FP32 file."
            )
        if node.domain not in STANDARD_DOMAINS:
            raise ModelError(
                f"'{shown}' has the operator {node.domain}.{node.op_type}, which only one runtime "
                "knows; give the file as it was exported, before a runtime optimised it."
            )
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    for tensor in proto.graph.initializer:
        if tensor.data_type in half:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type)
            raise ModelError(
                f"'{shown}' has weights in {kind} ('{tensor.name}'); give the FP32 file, for what "
                "half precision lost cannot be told from what INT8 loses."
            )


def raised_opset(proto: onnx.ModelProto, opset: int, shown: str) -> onnx.ModelProto:
    """Return the graph in `opset`, or as it is where its own opset is newer.

    Raises:
        ModelError: ONNX's version converter cannot convert it.
    """
    own = opset_of(proto)
    if own >= opset:
        return proto
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(proto, opset)
        onnx.checker.check_model(converted)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error) else type(error).__name__
        raise ModelError(
            f"'{shown}' has opset {own}, and onnx {onnx.__version__} cannot convert it to opset "
            f"{opset}: {reason}. Export the model again with opset {opset}."
        ) from error
    return converted
