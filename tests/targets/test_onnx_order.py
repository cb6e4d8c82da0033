"""`in_listed_order`: ONNX Runtime runs the nodes as the graph lists them."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from vitdeploy.targets.onnx import runner_from_model

# Two branches behind one dequantised value, each of two nodes; then the rest of the network.
GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
agraph (float[N] x) => (float s, float t, float z)
<float step = {0.5}, int8 zero = {0}>
{
    [quantize] q = QuantizeLinear(x, step, zero)
    [dequantize] d = DequantizeLinear(q, step, zero)
    [first] a = Exp(d)
    [first_sum] s = ReduceSum<keepdims=0>(a)
    [second] b = Neg(d)
    [second_sum] t = ReduceSum<keepdims=0>(b)
    [network] y = Sqrt(x)
    [network_sum] z = ReduceSum<keepdims=0>(y)
}
"""


def test_a_value_that_two_nodes_dequantise_comes_where_it_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    class Profiled(ort.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.enable_profiling = True
            self.profile_file_prefix = str(tmp_path / "profile")

    monkeypatch.setattr(ort, "SessionOptions", Profiled)
    model = ir.from_proto(onnx.parser.parse_model(GRAPH))
    with runner_from_model(model, in_listed_order=True) as runner:
        runner({"x": np.arange(1, 5, dtype=np.float32)})
        events = json.loads(Path(runner._session.end_profiling()).read_text(encoding="utf-8"))
    ran = [e["name"].removesuffix("_kernel_time") for e in events if e.get("cat") == "Node"]
    assert ran == [node.name for node in model.graph]


def test_what_no_output_needs_is_not_run():
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 20]>
        g (float[n] x) => (float[n] y) { y = Abs (x) other = Reshape (x, three) }""")
    three = onnx.numpy_helper.from_array(np.array([3]), "three")  # which 4 values do not fit
    model.graph.initializer.append(three)
    graph = ir.from_proto(model)
    feeds = {"x": np.arange(4, dtype="f4") - 2}
    with runner_from_model(graph, in_listed_order=True) as runner:
        assert np.array_equal(runner(feeds)["y"], np.abs(feeds["x"]))
    assert len(graph.graph) == 2
