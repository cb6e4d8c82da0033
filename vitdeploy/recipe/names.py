"""Names of precisions and targets that a user may type, and the one each means."""

from typing import Literal

from vitdeploy.errors import suggest

Precision = Literal["fp32", "fp16", "bf16", "int8", "w4a16", "w4a8", "auto"]
TargetName = Literal["onnx", "openvino", "trt", "trt-rtx"]

PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8", "w4a16", "w4a8", "auto")
PRECISION_SYNONYMS = {"w8a8": "int8", "int4": "w4a16"}
INT4_PRECISIONS = ("w4a16", "w4a8")
"""INT4 weights; the products compute in float, or on activations in INT8."""
INT4_OPSET = 21
"""The first ONNX opset with INT4, and with scales by block."""
TARGET_NAMES: tuple[str, ...] = ("onnx", "openvino", "trt", "trt-rtx")
TARGET_SYNONYMS = {"ov": "openvino", "ort": "onnx", "engine": "trt"}


def canonical_precision(name: str) -> str:
    """Return the precision that `name` means.

    Raises:
        ValueError: `name` is unknown.
    """
    lowered = name.lower()
    lowered = PRECISION_SYNONYMS.get(lowered, lowered)
    if lowered not in PRECISIONS:
        hint = suggest(lowered, PRECISIONS)
        raise ValueError(f"unknown precision '{name}'; allowed: {', '.join(PRECISIONS)}.{hint}")
    return lowered


def canonical_target(name: str) -> str:
    """Return the target that `name` means.

    Raises:
        ValueError: `name` is unknown.
    """
    lowered = name.lower()
    lowered = TARGET_SYNONYMS.get(lowered, lowered)
    if lowered not in TARGET_NAMES:
        hint = suggest(lowered, TARGET_NAMES)
        raise ValueError(f"unknown target '{name}'; allowed: {', '.join(TARGET_NAMES)}.{hint}")
    return lowered
