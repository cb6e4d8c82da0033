"""Rules about the quantised side of Q/DQ: zero points, INT8, INT4, FP8, int32 biases."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.surgery import int_attribute
from vitdeploy.lint.graph import LintGraph
from vitdeploy.lint.qdq import FP8, INT4, Qdq, has_qdq, is_activation, qdq_nodes
from vitdeploy.lint.rule import Finding, Rule, found
from vitdeploy.lint.versions import TensorRT, first_taking_opset, shown

_INT4_OPSET = 21
_FUSED_BLOCKS = (32, 64, 128)
_FP8_CARD = (8, 9)
_SIGNED = frozenset({ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT4E2M1}) | FP8
_ELSEWHERE = frozenset({ir.DataType.INT32, ir.DataType.UINT4})
"""Types that rules 30 and 15 speak of."""


def _has_int4(graph: LintGraph, _version: TensorRT) -> bool:
    return any(view.codes in INT4 for view in qdq_nodes(graph))


def _has_fp8(graph: LintGraph, _version: TensorRT) -> bool:
    return any(_fp8_nodes(graph))


def _zero_point(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        if view.zero_point is None:
            continue
        zeros = graph.constant(view.zero_point)
        if zeros is None and not graph.is_static(view.zero_point):
            yield found(view.node, "its zero point is computed at run time")
        elif zeros is not None and np.any(np.asarray(zeros, np.float32) != 0):
            first = np.asarray(zeros, np.float32).reshape(-1)
            yield found(view.node, f"its zero point is {first[first != 0][0]:g}, not 0")


def _int8_codes(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        if view.codes is None or view.codes in _SIGNED | _ELSEWHERE:
            continue
        kind = view.codes.name.lower()
        unsaid = view.zero_point is None and not view.dequantizes
        default = " (ONNX's default where no zero point says otherwise)" if unsaid else ""
        yield found(view.node, f"its codes are {kind}{default}; TensorRT takes them for int8")


def _int4_weights(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        if view.codes not in INT4:
            continue
        if version.newest_opset < _INT4_OPSET:
            yield found(
                view.node,
                f"INT4 needs opset {_INT4_OPSET}, which {version} does not document; "
                f"{first_taking_opset(_INT4_OPSET)} does",
                "keep the weight in INT8, or build with that version",
            )
        elif graph.opset < _INT4_OPSET:
            yield found(view.node, f"INT4 needs opset {_INT4_OPSET}, the graph has {graph.opset}")
        if view.codes == ir.DataType.UINT4:
            yield found(view.node, "its codes are uint4; TensorRT has signed int4 alone")
        yield from _int4_shape(graph, view, version)


def _int4_shape(graph: LintGraph, view: Qdq, version: TensorRT) -> Iterator[Finding]:
    data, scale = graph.shape(view.data), graph.shape(view.scale)
    # TensorRT for RTX 1.7 takes an odd one: asked of its builder.
    if data and data[-1] is not None and data[-1] % 2 and not version.is_rtx:
        yield found(view.node, f"its last dimension, {data[-1]}, is odd; two codes share a byte")
    if data is None or scale is None or len(data) != len(scale) or len(scale) < 2:
        return
    blocked = [axis for axis, sizes in enumerate(zip(data, scale, strict=True)) if _differ(*sizes)]
    if len(blocked) > 1:
        yield found(view.node, f"axes {blocked} are blocked; TensorRT takes one blocked axis")


def _differ(size: int | None, scales: int | None) -> bool:
    return size is not None and scales is not None and size != scales


def _int4_blocks(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        if view.codes not in INT4:
            continue
        if is_activation(graph, view):
            yield found(
                view.node,
                "an activation is quantised to INT4, which TensorRT has for weights alone",
                "leave the activation in float or quantise it to INT8",
            )
            continue
        block = _block(graph, view)
        if block not in _FUSED_BLOCKS:
            size = "no blocks" if block is None else f"blocks of {block}"
            yield found(view.node, f"it has {size}; those of 32, 64 and 128 fuse into the product")


def _block(graph: LintGraph, view: Qdq) -> int | None:
    """Return the length of a block along the blocked axis, None where there are no blocks."""
    written = int_attribute(view.node, "block_size", 0)
    if written:
        return written
    data, scale = graph.shape(view.data), graph.shape(view.scale)
    if data is None or scale is None or len(data) != len(scale):
        return None
    ratios = [a // b for a, b in zip(data, scale, strict=True) if a and b and a != b]
    return ratios[0] if len(ratios) == 1 else None


def _fp8_nodes(graph: LintGraph) -> Iterator[tuple[ir.Node, ir.DataType]]:
    for view in qdq_nodes(graph):
        if view.codes in FP8:
            yield view.node, view.codes
    for node in graph.of("Cast"):
        kind = ir.DataType(int_attribute(node, "to", 1))
        if kind in FP8:
            yield node, kind


def _fp8_cards(graph: LintGraph, version: TensorRT) -> Iterator[Finding]:
    card = graph.known.compute_capability
    for node, kind in _fp8_nodes(graph):
        if kind != ir.DataType.FLOAT8E4M3FN:
            yield found(node, f"TensorRT has FP8 as E4M3FN alone, not {kind.name}")
        elif version.parser < (10, 0):
            yield found(node, f"{version} has no FP8; TensorRT 10.0 has, on cards of SM 8.9 and up")
        elif card is None:
            yield found(
                node,
                "FP8 runs on cards of SM 8.9 and up (Ada, Hopper, Blackwell); Jetson Orin is 8.7",
                "say which card it is for with --compute-capability",
                "warning",
            )
        elif card < _FP8_CARD:
            yield found(node, f"FP8 needs a card of SM 8.9 and up, this one has {shown(card)}")


def _int32_bias(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for view in qdq_nodes(graph):
        if view.dequantizes and graph.type_of(view.data) == ir.DataType.INT32:
            yield found(view.node, f"it dequantises int32 '{view.data.name}'")


ZERO_POINT = Rule(
    1,
    "zero-point",
    "error",
    "zero points are 0",
    "TensorRT quantises symmetrically; the parser refuses any other zero point",
    "quantise symmetrically (ONNX Runtime: ActivationSymmetric and WeightSymmetric)",
    has_qdq,
    _zero_point,
)
INT8_CODES = Rule(
    2,
    "int8-codes",
    "error",
    "codes are int8, signed",
    "uint8 is refused or, worse, silently read as int8",
    "quantise to int8 with zero point 0, written out as the third input",
    has_qdq,
    _int8_codes,
)
INT4_WEIGHTS = Rule(
    15,
    "int4-weights",
    "error",
    "INT4 is signed, of opset 21, with an even last dimension and one blocked axis",
    "the parser packs two codes in a byte and blocks along one axis",
    "quantise the weight to signed int4 in blocks along its input axis, opset 21 or newer",
    _has_int4,
    _int4_weights,
)
FP8_CARDS = Rule(
    16,
    "fp8-cards",
    "error",
    "FP8 only for cards that have it",
    "cards below SM 8.9 have no FP8 arithmetic",
    "use INT8",
    _has_fp8,
    _fp8_cards,
)
INT4_BLOCKS = Rule(
    29,
    "int4-blocks",
    "warning",
    "INT4 on weights, in blocks of 32, 64 or 128",
    "INT4 saves memory, not arithmetic, and other blocks do not fuse into the product",
    "use blocks of 128 along the input axis",
    _has_int4,
    _int4_blocks,
)
INT32_BIAS = Rule(
    30,
    "int32-bias",
    "error",
    "biases are float, not int32 behind DequantizeLinear",
    "the parser refuses int32 codes; ONNX Runtime's quantize_static writes them by default",
    "give the bias in float (ONNX Runtime: extra_options={'QuantizeBias': False})",
    has_qdq,
    _int32_bias,
)
