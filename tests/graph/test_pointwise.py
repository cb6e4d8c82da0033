"""1x1 convolutions become products with the same result; all others stay."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from vitdeploy.graph.pointwise import matmul_from_pointwise_conv_
from vitdeploy.graph.sites import find_weight_sites
from vitdeploy.targets.onnx import runner_from_model


def conv_graph(kernel: int = 1, bias: bool = True, **attributes: object) -> ir.Model:
    rng = np.random.default_rng(0)
    group = int(attributes.get("group", 1))  # type: ignore[call-overload]
    arrays = {"w": rng.standard_normal((8, 4 // group, kernel, kernel)).astype("f4")}
    if bias:
        arrays["b"] = rng.standard_normal(8).astype("f4")
    nodes = [
        helper.make_node("Conv", ["x", *arrays], ["h"], "first", **attributes),
        helper.make_node("Gelu", ["h"], ["y"], "gelu"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 6, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(shape_inference.infer_shapes(proto))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    with runner_from_model(model) as runner:
        return runner({"x": x})["y"]


@pytest.mark.parametrize("bias", [True, False])
def test_result_is_the_same_and_the_site_is_a_matmul(bias: bool):
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 5)).astype("f4")
    model = conv_graph(bias=bias)
    expected = run(model, x)
    assert matmul_from_pointwise_conv_(model) == 1
    # The same sums in another order.
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)
    (site,) = find_weight_sites(model)
    assert (site.kind, site.name, site.activation_rank) == ("MatMul", "first", 4)
    assert matmul_from_pointwise_conv_(model) == 0


@pytest.mark.parametrize(
    "attributes",
    [{"kernel": 3}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"group": 4}],
    ids=lambda attributes: next(iter(attributes)),
)
def test_refuses_what_is_no_plain_product(attributes: dict):
    assert matmul_from_pointwise_conv_(conv_graph(**attributes)) == 0
