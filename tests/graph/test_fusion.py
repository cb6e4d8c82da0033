"""Written-out LayerNormalization and GELU, and BatchNormalization: fused exactly or left alone."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graph import double
from vitdeploy.graph import fusion
from vitdeploy.graph.cleanup import normalise_storage_

NORM = """
  m = ReduceMean <keepdims = 1> (x, last)
  d = Sub (x, m)
  p = Pow (d, two)
  v = ReduceMean <keepdims = 1> (p, last)
  e = Add (v, eps)
  s = Sqrt (e)
  n = Div (d, s)
  g = Mul (n, gamma)
  y = Add (g, beta)
"""
GELUS = {
    "torch": "a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half)",
    "half first": "a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (x, half) y = Mul (d, c)",
    "mul": "a = Mul (x, rsqrt) b = Erf (a) c = Add (one, b) d = Mul (c, half) y = Mul (d, x)",
}
CONSTANTS = {
    "two": np.float32(2),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "root": np.float32(np.sqrt(2)),
    "rsqrt": np.float32(np.sqrt(0.5)),
    "eps": np.float32(1e-6),
    "last": np.array([-1]),
    "gamma": np.linspace(0.5, 1.5, 8, dtype=np.float32),
    "beta": np.linspace(-1, 1, 8, dtype=np.float32),
}


def _model(body, opset=20, constants=CONSTANTS, shape="[batch, 3, 8]"):
    text = f'<ir_version: 9, opset_import: ["" : {opset}]> g (float{shape} x) => (float{shape} y)'
    proto = onnx.parser.parse_model(f"{text} {{ {body} }}")
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for name, array in constants.items()
        if name in used
    )
    return ir.from_proto(proto)


def _run(model, shape=(2, 3, 8)):
    return double.run_ort(model, np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def _ops(model):
    return [node.op_type for node in model.graph]


def test_a_written_out_layer_norm_becomes_one_node():
    model = _model(NORM)
    reference = _run(model)
    assert fusion.fuse_layer_norms_(model) == 1
    assert _ops(model) == ["LayerNormalization"]
    # float32: the order of a few sums differs
    np.testing.assert_allclose(_run(model), reference, atol=2e-6)


def test_a_layer_norm_without_affine_becomes_one_node():
    model = _model(NORM.split("  g =", maxsplit=1)[0].replace("n =", "y ="))
    reference = _run(model)
    assert fusion.fuse_layer_norms_(model) == 1
    np.testing.assert_allclose(_run(model), reference, atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Pow (d, two)", "Pow (d, half)"),
        ("s = Sqrt (e)", "s = Identity (e)"),
        ("d = Sub (x, m)", "d = Sub (m, x)"),
        ("p = Pow (d, two)", "p = Mul (d, x)"),
        ("v = ReduceMean <keepdims = 1> (p, last)", "v = ReduceSum <keepdims = 1> (p, last)"),
    ],
)
def test_what_only_looks_like_a_layer_norm_is_left(old, new):
    model = _model(NORM.replace(old, new))
    before = _ops(model)
    assert fusion.fuse_layer_norms_(model) == 0
    assert _ops(model) == before


def test_an_opset_without_layer_norm_is_left_and_reported():
    body = NORM.replace("ReduceMean <keepdims = 1> (x, last)", "ReduceMean <axes = [-1]> (x)")
    body = body.replace("ReduceMean <keepdims = 1> (p, last)", "ReduceMean <axes = [-1]> (p)")
    model = _model(body, opset=16)
    assert fusion.fuse_layer_norms_(model) == 0
    assert "opset 16 has no LayerNormalization" in fusion.leftovers(model)[0][1]


@pytest.mark.parametrize("form", list(GELUS))
def test_a_written_out_gelu_becomes_one_node(form):
    model = _model(GELUS[form])
    reference = _run(model)
    assert fusion.fuse_gelus_(model) == 1
    assert _ops(model) == ["Gelu"]
    np.testing.assert_allclose(_run(model), reference, atol=1e-6)  # float32 erf


def test_an_erf_of_something_else_is_left_and_reported():
    model = _model(GELUS["torch"].replace("Div (x, root)", "Div (x, two)"))
    assert fusion.fuse_gelus_(model) == 0
    assert "not part of" in fusion.leftovers(model)[0][1]


def test_gelu_below_opset_20_is_left_and_reported():
    model = _model(GELUS["torch"], opset=17)
    assert fusion.fuse_gelus_(model) == 0
    assert "opset 17 has no Gelu" in fusion.leftovers(model)[0][1]


BATCH_NORM = {
    "w": np.random.default_rng(1).standard_normal((3, 3, 1, 1)).astype(np.float32),
    "w2": np.random.default_rng(2).standard_normal((3, 3, 1, 1)).astype(np.float32),
    "ga": np.array([0.5, 1.0, 2.0], np.float32),
    "be": np.array([1.0, -1.0, 0.5], np.float32),
    "me": np.array([0.2, 0.1, -0.3], np.float32),
    "va": np.array([0.5, 1.5, 1.0], np.float32),
}
IMAGE = "[batch, 3, 4, 4]"


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, w) y = BatchNormalization (c, ga, be, me, va)",  # into the layer before
        "b = BatchNormalization (x, ga, be, me, va) y = Conv (b, w)",  # into the layer behind
        "c = Conv (x, w) b = BatchNormalization (c, ga, be, me, va) d = Conv (b, w2) "
        "y = Add (c, d)",
    ],
)
def test_batch_norm_is_folded(body):
    model = _model(body, constants=BATCH_NORM, shape=IMAGE)
    reference = _run(model, (2, 3, 4, 4))
    assert fusion.fold_batch_norms_(model) == []
    assert "BatchNormalization" not in _ops(model)
    np.testing.assert_allclose(_run(model, (2, 3, 4, 4)), reference, atol=2e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = BatchNormalization (x, ga, be, me, va)", "graph output"),
        (
            "b = BatchNormalization (x, ga, be, me, va) y = Conv <pads = [1, 1, 1, 1]> (b, w3)",
            "zero padding",
        ),
        ("b = BatchNormalization (x, ga, be, me, va) y = Relu (b)", "no layer with weights"),
    ],
)
def test_batch_norm_that_cannot_be_folded_is_reported(body, reason):
    constants = BATCH_NORM | {"w3": np.ones((3, 3, 3, 3), np.float32)}
    model = _model(body, constants=constants, shape=IMAGE)
    ((_, text),) = fusion.fold_batch_norms_(model)
    assert reason in text
    assert "BatchNormalization" in _ops(model)


def test_constants_written_as_nodes_do_not_hide_a_pattern():
    body = GELUS["torch"].replace("a = Div (x, root)", "r = Sqrt (two) a = Div (x, r)")
    model = _model(body)
    normalise_storage_(model)
    assert fusion.fuse_gelus_(model) == 1
