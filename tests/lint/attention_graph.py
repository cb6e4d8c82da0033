"""An attention as TensorRT meets it, in FP16, with Q/DQ where one wants."""

from dataclasses import dataclass

import numpy as np
import onnx

from tests.lint.graphs import ZERO, codes, f16, graph, weights


@dataclass(frozen=True)
class Attention:
    """How to draw an attention of 3 heads of 32 channels."""

    tokens: int = 16
    quantized: str = "qksv"
    """Which of q, k, softmax and v carry Q/DQ."""
    packed: bool = False
    bias: str = ""
    """"constant" or "input", or none."""

    def proto(self) -> onnx.ModelProto:
        """Return projections with INT8 weights, and the attention, in FP16."""
        width, tokens = 96, self.tokens
        lines = ["xq = QuantizeLinear(x, s, z)", "xd = DequantizeLinear(xq, s, z)"]
        arrays: dict[str, np.ndarray] = {"s": f16(0.1), "z": np.asarray(ZERO), "f": f16(0.17)}
        arrays["heads"] = np.array([0, 0, 3, 32])
        if self.packed:
            lines += self._linear("qkv", 3 * width, arrays)
            lines += ["q0, k0, v0 = Split <axis = -1, num_outputs = 3> (qkv)"]
        else:
            for role in "qkv":
                lines += self._linear(f"{role}0", width, arrays)
        for role, perm in (("q", "0, 2, 1, 3"), ("k", "0, 2, 3, 1"), ("v", "0, 2, 1, 3")):
            lines += [
                f"{role}1 = Reshape({role}0, heads)",
                f"{role}2 = Transpose <perm = [{perm}]> ({role}1)",
            ]
        lines += ["q3 = Mul(q2, f)"]
        lines += self._pair("q3", "q4", "q") + self._pair("k2", "k4", "k")
        lines += self._pair("v2", "v4", "v")
        lines += ["scores = MatMul(q4, k4)"]
        lines += ["biased = Add(scores, bias)" if self.bias else "biased = Identity(scores)"]
        lines += ["p = Softmax <axis = -1> (biased)"]
        lines += self._pair("p", "p4", "s")
        lines += ["c = MatMul(p4, v4)", "ct = Transpose <perm = [0, 2, 1, 3]> (c)"]
        lines += [f"y = Reshape(ct, flat{tokens})"]
        arrays[f"flat{tokens}"] = np.array([0, 0, width])
        inputs = f"float16[1,{tokens},{width}] x"
        if self.bias == "input":
            inputs += f", float16[1,3,{tokens},{tokens}] bias"
        elif self.bias == "constant":
            arrays["bias"] = weights(1, 3, tokens, tokens, dtype=np.float16)
        body = "\n".join(lines)
        return graph(f"g ({inputs}) => (float16[1,{tokens},{width}] y) {{ {body} }}", **arrays)

    def _pair(self, source: str, result: str, role: str) -> list[str]:
        if role not in self.quantized:
            return [f"{result} = Identity({source})"]
        return [
            f"{result}_q = QuantizeLinear({source}, s, z)",
            f"{result} = DequantizeLinear({result}_q, s, z)",
        ]

    def _linear(self, name: str, out: int, arrays: dict[str, np.ndarray]) -> list[str]:
        arrays[f"{name}_codes"] = codes(96, out)
        arrays[f"{name}_s"] = np.full(out, 0.01, np.float16)
        arrays[f"{name}_z"] = np.zeros(out, np.int8)
        arrays[f"{name}_b"] = weights(out, dtype=np.float16)
        return [
            f"{name}_w = DequantizeLinear <axis = 1> ({name}_codes, {name}_s, {name}_z)",
            f"{name}_p = MatMul(xd, {name}_w)",
            f"{name} = Add({name}_p, {name}_b)",
        ]
