"""Names of precisions and targets that a user may type, and the one each means."""

from typing import Literal

from vitdeploy.errors import suggest

Precision = Literal["fp32", "fp16", "bf16", "int8", "auto"]
TargetName = Literal["onnx", "openvino", "trt", "trt-rtx"]

PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8", "auto")
PRECISION_SYNONYMS = {"w8a8": "int8"}
PRECISIONSTO_COME = ("w4a8", "w4a16", "int4")
TARGET_NAMES: tuple[str, ...] = ("onnx", "openvino", "trt", "trt-rtx")
TARGET_SYNONYMS = {"ov": "openvino", "ort": "onnx", "engine": "trt"}
TO_COME = "is not available in this version"


def canonical_precision(name: str) -> str:
    """Return the precision that `name` means.

    Raises:
        ValueError: `name` is unknown, or not available in this version.
    """
    lowered = name.lower()
    lowered = PRECISION_SYNONYMS.get(lowered, lowered)
    if lowered in PRECISIONSTO_COME:
        raise ValueError(f"precision '{name}' {TO_COME}; use {', '.join(PRECISIONS)}")
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
