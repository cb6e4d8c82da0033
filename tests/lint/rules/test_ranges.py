"""LayerNormalization in FP16."""

import numpy as np

from tests.lint import graphs
from tests.lint.graphs import graph
from tests.lint.verdicts import whys


def test_what_was_measured_decides():
    half = graphs.norm_in("float16")
    assert whys(half, 20, largest={"x": 511.0}) == ""
    assert "reaches 600" in whys(half, 20, largest={"x": 600.0})


def test_fp32_graphs_may_be_built_in_fp16_before_11():
    single = graphs.norm_in("float")
    assert "--fp16" in whys(single, 20, "10.3", largest={"x": 600.0})
    assert whys(single, 20, "11", largest={"x": 600.0}) == ""


def test_a_norm_that_is_written_out():
    model = graph(
        """g (float[1,4,32] x) => (float[1,4,32] y) {
             m = ReduceMean <keepdims = 1> (x, last)
             d = Sub(x, m)
             s = Pow(d, two)
             v = ReduceMean <keepdims = 1> (s, last)
             e = Add(v, eps)
             r = Sqrt(e)
             y = Div(d, r)
           }""",
        last=np.array([-1]),
        two=np.float32(2),
        eps=np.float32(1e-5),
    )
    assert "written out" in whys(model, 20)
    assert whys(model, 20, "11") == ""
