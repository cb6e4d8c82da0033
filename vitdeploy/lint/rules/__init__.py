"""All rules, in the order of their numbers; one module a theme."""

from vitdeploy.lint.rule import Rule
from vitdeploy.lint.rules import codes, file, operators, placement, ranges, scales, speed, types

RULES: tuple[Rule, ...] = (
    file.CHECKER,
    codes.ZERO_POINT,
    codes.INT8_CODES,
    scales.SCALE_VALUES,
    scales.SCALE_LENGTH,
    scales.CHANNELS_OF_CONSTANTS,
    types.SCALE_TYPE,
    types.HALF_SCALE_OPSET,
    operators.INTEGER_OPERATORS,
    operators.FOREIGN_OPERATORS,
    operators.RESIZE,
    operators.EINSUM,
    operators.UNSUPPORTED_OPERATORS,
    operators.LAYERNORM_OUTPUTS,
    file.OPSET,
    codes.INT4_WEIGHTS,
    codes.FP8_CARDS,
    scales.EXPLICIT_8,
    types.WIDE_TYPES,
    file.PROFILES,
    ranges.LAYERNORM_RANGE,
    speed.WHOLE_ATTENTION,
    speed.LONG_ATTENTION,
    speed.PACKED_QKV,
    speed.ATTENTION_BIAS,
    placement.KEPT_FLOAT,
    placement.RESIDUAL,
    placement.SMALL_PRODUCTS,
    types.HALF_AROUND_QDQ,
    codes.INT4_BLOCKS,
    codes.INT32_BIAS,
)
"""Number 0 is `onnx.checker`'s verdict; 1 to 30 are TensorRT's own."""
