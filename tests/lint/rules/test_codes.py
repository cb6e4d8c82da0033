"""Zero points, INT8, INT4 and FP8."""

import ml_dtypes
import numpy as np

from tests.lint import graphs
from tests.lint.graphs import graph
from tests.lint.verdicts import lint, result, whys


def test_a_quantizer_that_does_not_say_is_uint8():
    model = graph(
        """g (float[4] x) => (float[4] y) {
             q = QuantizeLinear(x, s)
             y = DequantizeLinear(q, s)
           }""",
        s=np.float32(0.1),
    )
    assert "ONNX's default" in whys(model, 2)


def test_int4_by_version():
    assert "TensorRT 10.15 does" in whys(graphs.int4(), 15, "10.3")
    assert whys(graphs.int4(), 15, "10.15") == ""


def test_int4_needs_an_even_last_dimension():
    assert "odd" in whys(graphs.int4(columns=63), 15, "11")
    # TensorRT for RTX 1.7 builds it.
    assert whys(graphs.int4(columns=63), 15, "trt-rtx") == ""


def test_int4_in_two_blocked_axes():
    assert "one blocked axis" in whys(graphs.int4(blocked_axes=2), 15, "11")


def test_int4_activations():
    model = graphs.pair(np.zeros((), ml_dtypes.int4))
    model.opset_import[0].version = 21
    assert "activation" in whys(model, 29, "11")


def test_fp8_by_version_card_and_format():
    assert "TensorRT 10.0 has" in whys(graphs.fp8(), 16, "8.6")
    unknown = result(lint(graphs.fp8()), 16)
    assert {finding.severity for finding in unknown.findings} == {"warning"}
    wide = graphs.pair(np.zeros((), ml_dtypes.float8_e5m2))
    assert "E4M3FN" in whys(wide, 16, compute_capability=(8, 9))
