"""F6: LayerScale goes into the layer before it, also through layout operators."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graph import tiny
from tests.graph.exactness import assert_exact
from vitdeploy.graph.folds import layerscale as fold

# (family, LayerScale and one-element factors behind layers)
COUNTS = [("dinov2_reg", 4), ("dinov3", 4), ("cait", 6), ("fastvit", 5), ("hf_dinov2", 4)]


def _fold_all_(model):
    sites = [site for site in fold.find(model) if fold.applies(site) is None]
    for site in sites:
        fold.apply_(model, site)


@pytest.mark.parametrize(("family", "at_least"), COUNTS)
def test_the_function_is_unchanged(family, at_least):
    raw = ir.from_proto(onnx.load_from_string(tiny.exported(family)))
    vectors = [s for s in fold.find(raw) if s.factor is not None and np.ptp(s.factor) > 0]
    assert len(vectors) == at_least
    model = assert_exact(tiny.exported(family), _fold_all_)
    assert len(model.graph) < len(raw.graph)
    assert fold.find(model) == []


def test_a_factor_that_is_not_by_channel_is_refused():
    model = _linear_and_mul(np.arange(1, 9, dtype=np.float32).reshape(1, 2, 4))
    (site,) = fold.find(model)
    assert "not one number per channel" in fold.applies(site)
    with pytest.raises(ValueError, match="not one number per channel"):
        fold.apply_(model, site)


def test_a_factor_that_is_not_finite_is_refused():
    (site,) = fold.find(_linear_and_mul(np.array([1, 2, np.inf, 4], dtype=np.float32)))
    assert "not finite" in fold.applies(site)


def test_a_layer_with_another_reader_is_no_site():
    model = _linear_and_mul(np.arange(1, 5, dtype=np.float32))
    model.graph.outputs.append(model.graph[0].outputs[0])
    assert fold.find(model) == []


def _linear_and_mul(factor):
    helper = onnx.helper
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Mul", ["h", "g"], ["y"], name="scale"),
    ]
    weights = {"w": np.eye(3, 4, dtype=np.float32), "g": factor}
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", floats, ["batch", 2, 3])],
        [helper.make_tensor_value_info("y", floats, ["batch", 2, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
