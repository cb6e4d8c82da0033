"""Types of scales and regions, 64-bit ones."""

import numpy as np

from tests.lint import graphs
from tests.lint.graphs import graph
from tests.lint.verdicts import whys


def test_fp32_scales_in_an_fp16_product():
    model = graph(
        """g (float16[4,32] x) => (float16[4,64] y) {
             w = DequantizeLinear(codes, s, z)
             y = MatMul(x, w)
           }""",
        codes=graphs.codes(32, 64),
        s=np.float32(0.1),
        z=np.int8(0),
    )
    assert "beside FLOAT16" in whys(model, 6)


def test_ends_of_slices_are_clamped_anyway():
    model = graph(
        "g (float[8] x) => (float[4] y) { y = Slice(x, start, end) }",
        start=np.array([4]),
        end=np.array([np.iinfo(np.int64).max]),
    )
    assert whys(model, 18) == ""


def test_doubles():
    model = graph("g (double[4] x) => (double[4] y) { y = Add(x, c) }", c=np.ones(4))
    assert whys(model, 18).count("float64") == 3
