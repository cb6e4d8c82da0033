"""Scales: values, number, axis; TensorRT 8."""

import numpy as np
import onnx
import pytest

from tests.lint import graphs
from tests.lint.graphs import graph
from tests.lint.verdicts import whys


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan, -0.5])
def test_values(value: float):
    assert "scales are like" in whys(graphs.pair(np.int8(0), np.float32(value)), 3)


def test_a_scale_computed_at_run_time():
    assert "run time" in whys(graphs.runtime_scale(), 3)


def test_a_scale_behind_identity_is_constant():
    model = graph(
        """g (float[4] x) => (float[4] y) {
             t = Identity(s)
             q = QuantizeLinear(x, t, z)
             y = DequantizeLinear(q, t, z)
           }""",
        s=np.float32(-1),
        z=np.int8(0),
    )
    assert "-1" in whys(model, 3)


def test_an_axis_that_is_not_written():
    model = graphs.product(1, 64, attribute="")
    assert "not written" in whys(model, 4, "10.3")
    assert whys(model, 4, "11") == ""


def test_an_axis_that_is_not_the_outputs():
    assert "output channels are axis 1" in whys(graphs.product(0, 32), 4)


def test_an_axis_is_followed_through_a_transpose():
    def transposed(axis: int, count: int) -> onnx.ModelProto:
        return graph(
            f"""g (float[4,32] x) => (float[4,64] y) {{
                 w = DequantizeLinear <axis = {axis}> (codes, s, z)
                 t = Transpose <perm = [1, 0]> (w)
                 y = MatMul(x, t)
               }}""",
            codes=graphs.codes(64, 32),
            s=np.full(count, 0.1, np.float32),
            z=np.zeros(count, np.int8),
        )

    assert whys(transposed(0, 64), 4) == ""
    assert "output channels" in whys(transposed(1, 32), 4)


def test_gemm_and_conv_want_axis_0():
    assert whys(graphs.int_bias(quantized=False), 4) == ""


def test_fp16_scales_are_not_for_tensorrt_8():
    assert "FP32" in whys(graphs.half_pair(graphs.f16(0.1)), 17, "8.6")
