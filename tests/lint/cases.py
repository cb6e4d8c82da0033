"""For each rule a graph that breaks it and one that keeps it."""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx

from tests.lint import graphs
from tests.lint.attention_graph import Attention

DEFAULT = "10.3"


@dataclass(frozen=True)
class Case:
    """A rule, a graph that breaks it and one that does not."""

    number: int
    bad: Callable[[], onnx.ModelProto]
    good: Callable[[], onnx.ModelProto]
    version: str = DEFAULT
    card: tuple[int, int] | None = None
    good_card: tuple[int, int] | None = None


CASES = (
    Case(1, lambda: graphs.pair(np.int8(3)), lambda: graphs.pair(graphs.ZERO)),
    Case(2, lambda: graphs.pair(np.uint8(0)), lambda: graphs.pair(graphs.ZERO)),
    Case(3, lambda: graphs.pair(graphs.ZERO, np.float32(-1)), lambda: graphs.pair(graphs.ZERO)),
    Case(4, lambda: graphs.product(1, 63), lambda: graphs.product(1, 64)),
    Case(5, graphs.per_channel_activation, lambda: graphs.product(1, 64)),
    Case(
        6,
        lambda: graphs.half_pair(np.asarray(graphs.SCALE)),
        lambda: graphs.half_pair(graphs.f16(0.1)),
    ),
    Case(
        7,
        lambda: graphs.half_pair(graphs.f16(0.1), 18),
        lambda: graphs.half_pair(graphs.f16(0.1), 19),
    ),
    Case(8, graphs.integer_product, lambda: graphs.product(1, 64)),
    Case(9, graphs.foreign_operator, graphs.plain),
    Case(10, lambda: graphs.resize(1), lambda: graphs.resize(0)),
    Case(
        11,
        lambda: graphs.einsum("Bij,Bjk->Bik", "1,4,8", "1,8,4", "1,4,4"),
        lambda: graphs.einsum("bij,bjk->bik", "1,4,8", "1,8,4", "1,4,4"),
    ),
    Case(12, graphs.unique, lambda: graphs.scatter("")),
    Case(
        13,
        lambda: graphs.layer_norm("y, m", "float[1,4,32] z, float[1,4,1] m"),
        lambda: graphs.layer_norm("y", "float[1,4,32] z"),
    ),
    Case(14, lambda: graphs.plain(21), lambda: graphs.plain(20)),
    Case(15, lambda: graphs.int4(dtype=ml_dtypes.uint4), graphs.int4, "11.0"),
    Case(16, graphs.fp8, graphs.fp8, card=(8, 7), good_card=(8, 9)),
    Case(17, graphs.two_inputs, graphs.opset17_product, "8.6"),
    Case(18, lambda: graphs.gather(1 << 40), lambda: graphs.gather(1 << 20)),
    Case(19, lambda: graphs.plain(shape="batch,4,32"), graphs.plain),
    Case(20, lambda: graphs.norm_in("float16"), lambda: graphs.norm_in("float")),
    Case(21, lambda: Attention(quantized="qk").proto(), lambda: Attention().proto()),
    Case(22, lambda: Attention(tokens=513).proto(), lambda: Attention(tokens=512).proto()),
    Case(23, lambda: Attention(packed=True).proto(), lambda: Attention().proto()),
    Case(
        24,
        lambda: Attention(bias="input").proto(),
        lambda: Attention(bias="constant").proto(),
    ),
    Case(
        25,
        lambda: graphs.quantized_before("LayerNormalization"),
        lambda: graphs.quantized_before("MatMul"),
    ),
    Case(26, lambda: graphs.residual(quantized=True), lambda: graphs.residual(quantized=False)),
    Case(27, lambda: graphs.narrow_product(1, 64), lambda: graphs.narrow_product(4, 64)),
    Case(28, lambda: graphs.product(1, 64), lambda: graphs.half_pair(graphs.f16(0.1))),
    Case(29, lambda: graphs.int4(block=16), lambda: graphs.int4(block=32), "11.0"),
    Case(30, lambda: graphs.int_bias(quantized=True), lambda: graphs.int_bias(quantized=False)),
)
