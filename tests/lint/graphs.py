"""Tiny graphs in ONNX's own text form, each to break or to keep a rule; no rule is named here."""

import ml_dtypes
import numpy as np
import onnx
from onnx import parser


def graph(text: str, opset: int = 19, ir: int = 9, **arrays: np.ndarray) -> onnx.ModelProto:
    """Parse one graph; `arrays` become initialisers, and `ms:` operators com.microsoft's."""
    imports = f'"" : {opset}, "com.microsoft" : 1'
    model = parser.parse_model(f"<ir_version: {ir}, opset_import: [{imports}]>\n{text}")
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    if not any(node.domain for node in model.graph.node):
        del model.opset_import[1]
    return model


def weights(*shape: int, dtype: object = np.float32) -> np.ndarray:
    """Seeded values in -1..1 of a shape."""
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)  # type: ignore[arg-type]


def codes(*shape: int) -> np.ndarray:
    """Seeded INT8 codes of a shape."""
    return np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)


def f16(*values: float) -> np.ndarray:
    """A float16 vector; a scalar where there is one value."""
    array = np.array(values, np.float16)
    return array.reshape(()) if array.size == 1 else array


ZERO, SCALE = np.int8(0), np.float32(0.1)


def pair(zero_point: object, scale: object = SCALE) -> onnx.ModelProto:
    """One Q/DQ pair on an activation, then Relu."""
    return graph(
        """g (float[1,4,32] x) => (float[1,4,32] y) {
             q = QuantizeLinear(x, s, z)
             d = DequantizeLinear(q, s, z)
             y = Relu(d)
           }""",
        s=np.asarray(scale),
        z=np.asarray(zero_point),
    )


def product(
    axis: int, scales: int, attribute: str | None = None, in_: int = 32, out: int = 64
) -> onnx.ModelProto:
    """An INT8 MatMul whose weight has `scales` scales along `axis`."""
    attribute = f"<axis = {axis}>" if attribute is None else attribute
    return graph(
        f"""g (float[1,4,{in_}] x) => (float[1,4,{out}] y) {{
             q = QuantizeLinear(x, s, z)
             d = DequantizeLinear(q, s, z)
             w = DequantizeLinear {attribute} (codes, ws, wz)
             p = MatMul(d, w)
             y = Relu(p)
           }}""",
        s=SCALE,
        z=ZERO,
        codes=codes(in_, out),
        ws=np.full(scales, 0.01, np.float32),
        wz=np.zeros(scales, np.int8),
    )


def per_channel_activation() -> onnx.ModelProto:
    """A Q/DQ pair with one scale per channel on what is no constant."""
    return graph(
        """g (float[1,4,32] x) => (float[1,4,32] y) {
             q = QuantizeLinear <axis = 2> (x, s, z)
             d = DequantizeLinear <axis = 2> (q, s, z)
             y = Relu(d)
           }""",
        s=np.full(32, 0.1, np.float32),
        z=np.zeros(32, np.int8),
    )


def runtime_scale() -> onnx.ModelProto:
    """A Q/DQ pair whose scale is an input of the graph."""
    return graph(
        """g (float[1,4,32] x, float s) => (float[1,4,32] y) {
             q = QuantizeLinear(x, s, z)
             d = DequantizeLinear(q, s, z)
             y = Relu(d)
           }""",
        z=ZERO,
    )


def half_pair(scale: np.ndarray, opset: int = 19) -> onnx.ModelProto:
    """A Q/DQ pair in an FP16 graph."""
    kind = "float16" if scale.dtype == np.float16 else "float"
    return graph(
        f"""g (float16[1,4,32] x) => ({kind}[1,4,32] y) {{
             q = QuantizeLinear(x, s, z)
             d = DequantizeLinear(q, s, z)
             y = Relu(d)
           }}""",
        opset,
        s=scale,
        z=ZERO,
    )


def integer_product() -> onnx.ModelProto:
    """MatMulInteger."""
    return graph(
        """g (int8[4,32] x) => (float[4,64] y) {
             p = MatMulInteger(x, w)
             y = Cast <to = 1> (p)
           }""",
        w=codes(32, 64),
    )


def foreign_operator() -> onnx.ModelProto:
    """An operator of ONNX Runtime's own."""
    return graph(
        """g (float[1,4,32] x) => (float[1,4,32] y) {
             h = com.microsoft.FastGelu(x)
             y = Relu(h)
           }"""
    )


def resize(antialias: int) -> onnx.ModelProto:
    """A bilinear Resize to half the size."""
    return graph(
        f"""g (float[1,3,16,16] x) => (float[1,3,8,8] y) {{
             y = Resize <mode = "linear", antialias = {antialias}> (x, , scales)
           }}""",
        scales=np.array([1, 1, 0.5, 0.5], np.float32),
    )


def einsum(equation: str, left: str, right: str, out: str) -> onnx.ModelProto:
    """An Einsum of two inputs."""
    return graph(
        f"""g (float[{left}] a, float[{right}] b) => (float[{out}] y) {{
             y = Einsum <equation = "{equation}"> (a, b)
           }}"""
    )


def scatter(attribute: str) -> onnx.ModelProto:
    """A ScatterND."""
    return graph(
        f"""g (float[8,4] x, float[2,4] u) => (float[8,4] y) {{
             y = ScatterND {attribute} (x, i, u)
           }}""",
        i=np.array([[1], [3]]),
    )


def unique() -> onnx.ModelProto:
    """Unique."""
    return graph("g (float[8] x) => (float[n] y) { y = Unique(x) }")


def layer_norm(outputs: str, results: str) -> onnx.ModelProto:
    """LayerNormalization with some of its outputs read."""
    return graph(
        f"""g (float[1,4,32] x) => ({results}) {{
             {outputs} = LayerNormalization(x, g, b)
             z = Relu(y)
           }}""",
        g=weights(32),
        b=weights(32),
    )


def plain(opset: int = 19, shape: str = "1,4,32") -> onnx.ModelProto:
    """A Relu."""
    return graph(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}", opset, ir=10)


def int4(
    columns: int = 64,
    dtype: object = ml_dtypes.int4,
    block: int = 32,
    opset: int = 21,
    blocked_axes: int = 1,
) -> onnx.ModelProto:
    """A product with a block-wise INT4 weight (64, columns)."""
    dtype = np.dtype(dtype)  # type: ignore[call-overload]
    low = 0 if dtype == ml_dtypes.uint4 else -8
    values = np.random.default_rng(0).integers(low, low + 16, (64, columns))
    rows, across = 64 // block, columns // (2 if blocked_axes == 2 else 1)
    return graph(
        f"""g (float[1,4,64] x) => (float[1,4,{columns}] y) {{
             w = DequantizeLinear <axis = 0, block_size = {block}> (codes, ws, wz)
             p = MatMul(x, w)
             y = Relu(p)
           }}""",
        opset,
        ir=10,
        codes=values.astype(dtype),
        ws=np.full((rows, across), 0.1, np.float32),
        wz=np.zeros((rows, across), dtype),
    )


def fp8() -> onnx.ModelProto:
    """A Q/DQ pair in FP8."""
    return pair(np.zeros((), ml_dtypes.float8_e4m3fn))


def two_inputs() -> onnx.ModelProto:
    """A DequantizeLinear of a weight without a zero point, as opset 17 allows."""
    return graph(
        """g (float[1,4,32] x) => (float[1,4,64] y) {
             w = DequantizeLinear(codes, s)
             p = MatMul(x, w)
             y = Relu(p)
           }""",
        17,
        codes=codes(32, 64),
        s=SCALE,
    )


def opset17_product() -> onnx.ModelProto:
    """`product`, one scale a tensor, as TensorRT 8.6 wants it."""
    model = product(1, 64)
    model.opset_import[0].version = 17
    return model


def gather(index: int) -> onnx.ModelProto:
    """A sum with an int64 constant."""
    return graph("g (int64[4] x) => (int64[4] y) { y = Add(x, c) }", c=np.array([index], np.int64))


def norm_in(kind: str) -> onnx.ModelProto:
    """A LayerNormalization in `float16` or `float`."""
    dtype = np.float16 if kind == "float16" else np.float32
    return graph(
        f"""g ({kind}[1,4,32] x) => ({kind}[1,4,32] y) {{
             y = LayerNormalization(x, g, b)
           }}""",
        g=weights(32, dtype=dtype),
        b=weights(32, dtype=dtype),
    )


def quantized_before(operator: str) -> onnx.ModelProto:
    """A Q/DQ pair right before `operator`."""
    text = {
        "LayerNormalization": "y = LayerNormalization(d, g, g)",
        "Softmax": "y = Softmax(d)",
        "Gelu": "y = Gelu(d)",
        "Erf": "y = Erf(d)",
        "output": "r = Relu(d) y = Identity(d)",
        "MatMul": "y = MatMul(d, w)",
    }[operator]
    return graph(
        f"""g (float16[1,4,32] x) => (float16[1,4,32] y) {{
             q = QuantizeLinear(x, s, z)
             d = DequantizeLinear(q, s, z)
             {text}
           }}""",
        20,
        s=f16(0.1),
        z=ZERO,
        **({"g": weights(32, dtype=np.float16)} if operator == "LayerNormalization" else {}),
        **({"w": weights(32, 32, dtype=np.float16)} if operator == "MatMul" else {}),
    )


def quantized_bias() -> onnx.ModelProto:
    """A constant that is added from behind a DequantizeLinear."""
    return graph(
        """g (float16[1,4,32] x) => (float16[1,4,32] y) {
             b = DequantizeLinear(codes, s, z)
             y = Add(x, b)
           }""",
        s=f16(0.1),
        z=ZERO,
        codes=codes(32),
    )


def residual(*, quantized: bool) -> onnx.ModelProto:
    """A residual Add around a product, with and without Q/DQ on the stream."""
    stream = "xd" if quantized else "x"
    return graph(
        f"""g (float16[1,4,32] x) => (float16[1,4,32] y) {{
             xq = QuantizeLinear(x, s, z)
             xd = DequantizeLinear(xq, s, z)
             p = MatMul(xd, w)
             r = Add({stream}, p)
             y = Relu(r)
           }}""",
        s=f16(0.1),
        z=ZERO,
        w=weights(32, 32, dtype=np.float16),
    )


def narrow_product(rows: int, columns: int) -> onnx.ModelProto:
    """An INT8 product of `rows` by `columns`."""
    return graph(
        f"""g (float16[{rows},64] x) => (float16[{rows},{columns}] y) {{
             q = QuantizeLinear(x, s, z)
             d = DequantizeLinear(q, s, z)
             w = DequantizeLinear(codes, s, z)
             p = MatMul(d, w)
             y = Relu(p)
           }}""",
        s=f16(0.1),
        z=ZERO,
        codes=codes(64, columns),
    )


def convolution(in_channels: int, out_channels: int) -> onnx.ModelProto:
    """An INT8 convolution."""
    return graph(
        f"""g (float16[1,{in_channels},8,8] x) => (float16[1,{out_channels},8,8] y) {{
             q = QuantizeLinear(x, s, z)
             d = DequantizeLinear(q, s, z)
             w = DequantizeLinear(codes, s, z)
             p = Conv(d, w)
             y = Relu(p)
           }}""",
        s=f16(0.1),
        z=ZERO,
        codes=codes(out_channels, in_channels, 1, 1),
    )


def int_bias(*, quantized: bool) -> onnx.ModelProto:
    """A Gemm whose bias comes as int32 behind DequantizeLinear, or in float."""
    bias = "b = DequantizeLinear(bc, bs, bz)" if quantized else "b = Identity(bf)"
    arrays: dict[str, np.ndarray] = {"bf": weights(64)}
    if quantized:
        arrays = {
            "bc": np.arange(64, dtype=np.int32),
            "bs": np.float32(0.001),
            "bz": np.zeros((), np.int32),
        }
    return graph(
        f"""g (float[4,32] x) => (float[4,64] y) {{
             q = QuantizeLinear(x, s, z)
             d = DequantizeLinear(q, s, z)
             w = DequantizeLinear <axis = 0> (codes, ws, wz)
             {bias}
             y = Gemm <transB = 1> (d, w, b)
           }}""",
        s=SCALE,
        z=ZERO,
        codes=codes(64, 32),
        ws=np.full(64, 0.01, np.float32),
        wz=np.zeros(64, np.int8),
        **arrays,
    )
