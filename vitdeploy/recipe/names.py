"""Names of precisions, targets and outputs that a user may type, and the one each means."""

from typing import Literal

from vitdeploy.errors import suggest

Precision = Literal["fp32", "fp16", "bf16", "int8", "w4a16", "w4a8", "auto"]
TargetName = Literal["onnx", "openvino", "trt", "trt-rtx"]
AttentionForm = Literal["as-exported", "split", "fused", "padded-8", "padded-32"]
"""As the model's own layers are; with q, k and v from layers of their own; as ONNX Runtime's
operator, which reads such layers; or with empty tokens for a multiple of 8 or 32 of them."""

PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8", "w4a16", "w4a8", "auto")
PRECISION_SYNONYMS = {"w8a8": "int8", "int4": "w4a16"}
INT4_PRECISIONS = ("w4a16", "w4a8")
"""INT4 weights; the products compute in float, or on activations in INT8."""
INT4_OPSET = 21
"""The first ONNX opset with INT4, and with scales by block."""
TARGET_NAMES: tuple[str, ...] = ("onnx", "openvino", "trt", "trt-rtx")
TARGET_SYNONYMS = {"ov": "openvino", "ort": "onnx", "engine": "trt"}

OUTPUT_KINDS = ("logits", "features", "cls", "patch", "pooled", "mean", "pyramid", "attention")
"""What a model can be asked to return; `pixel-shuffle-K` too, for a K of 2 and more."""
PIXEL_SHUFFLE = "pixel-shuffle-"
_ALONE = ("features", "pyramid")


def canonical_outputs(text: str) -> str:
    """Return the kinds of outputs that `text` lists, separated by commas only.

    Raises:
        ValueError: a kind is unknown or there twice, or one that stands alone is not alone.
    """
    kinds = [kind.strip().lower() for kind in text.split(",")]
    allowed = f"allowed: {', '.join(OUTPUT_KINDS)}, {PIXEL_SHUFFLE}K with K from 2"
    for kind in kinds:
        if kind not in OUTPUT_KINDS and pixel_shuffle_factor(kind) < 2:
            raise ValueError(f"unknown outputs '{kind}'; {allowed}.{suggest(kind, OUTPUT_KINDS)}")
    names = [PIXEL_SHUFFLE if pixel_shuffle_factor(kind) else kind for kind in kinds]
    if len(set(names)) < len(names):
        raise ValueError(f"outputs '{text}': each kind can be asked for once")
    if len(kinds) > 1 and set(kinds) & set(_ALONE):
        raise ValueError(f"outputs '{text}': {' and '.join(_ALONE)} are asked for alone")
    return ",".join(kinds)


def pixel_shuffle_factor(kind: str) -> int:
    """Return K of `pixel-shuffle-K`, 0 for any other kind."""
    factor = kind.removeprefix(PIXEL_SHUFFLE)
    return int(factor) if factor != kind and factor.isdecimal() and len(factor) < 4 else 0


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
