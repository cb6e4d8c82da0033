"""Label tracing: what moves where, and where a trace must stop."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.graph.layout import (
    FOREIGN,
    LAYOUT,
    ZERO,
    Through,
    channel_labels,
    channel_map,
    concrete_shapes,
    trace,
)


def _model(body, out="[batch, 6, 4]", arrays=None):
    head = f"(float[batch, 6, 4] x, float[batch, 6, 4] z) => (float{out} y)"
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {head} {{{body}}}')
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (arrays or {}).items()
    )
    return ir.from_proto(proto)


def _trace(model, through=LAYOUT, batch=2):
    shapes = concrete_shapes(model, batch)
    source = model.graph.inputs[0]
    labels = np.arange(np.prod(shapes["x"]), dtype=np.int32).reshape(shapes["x"])
    return labels, trace(model.graph, source, labels, shapes, through)


FORMS = [
    ("r = Reshape (x, a) y = Relu (r)", {"a": [-1, 2, 3, 4]}, lambda x: x.reshape(2, 2, 3, 4)),
    ("r = Transpose <perm = [0, 2, 1]> (x) y = Relu (r)", {}, lambda x: x.transpose(0, 2, 1)),
    (
        "r = Slice (x, a, b, c) y = Relu (r)",
        {"a": [1], "b": [2**63 - 1], "c": [1]},
        lambda x: x[:, 1:],
    ),
    (
        "r = Slice (x, a, b, c, d) y = Relu (r)",
        {"a": [-1], "b": [-(2**63)], "c": [2], "d": [-1]},
        lambda x: x[:, :, ::-1],
    ),
    ("r = Gather <axis = 1> (x, a) y = Relu (r)", {"a": 0}, lambda x: x[:, 0]),
    ("r = Unsqueeze (x, a) y = Relu (r)", {"a": [1]}, lambda x: x[:, None]),
    (
        "p, q = Split <axis = 2, num_outputs = 2> (x) r = Concat <axis = 2> (q, p) y = Relu (r)",
        {},
        lambda x: np.concatenate([x[..., 2:], x[..., :2]], axis=2),
    ),
    (
        "r = Pad (x, a) y = Relu (r)",
        {"a": [0, 0, 0, 0, 2, 0]},
        lambda x: np.pad(x, ((0, 0), (0, 2), (0, 0)), constant_values=ZERO),
    ),
    (
        "r = Concat <axis = 1> (x, z) y = Relu (r)",
        {},
        lambda x: np.concatenate([x, np.full_like(x, FOREIGN)], axis=1),
    ),
]


@pytest.mark.parametrize(("body", "arrays", "expected"), FORMS)
def test_labels_move_as_numpy_moves_them(body, arrays, expected):
    model = _model(body, arrays={k: np.asarray(v, np.int64) for k, v in arrays.items()})
    labels, found = _trace(model)
    (sink,) = found.sinks
    assert sink.node.op_type == "Relu"
    assert np.array_equal(sink.labels, expected(labels))


@pytest.mark.parametrize(
    "body",
    ["y = Relu (x)", "y = Mul (x, z)", "y = Add (x, z)", 'y = Pad <mode = "reflect"> (x, p)'],
)
def test_arithmetic_stops_a_trace(body):
    _, found = _trace(_model(body, arrays={"p": np.zeros(6, np.int64)}))
    assert [sink.labels.shape for sink in found.sinks] == [(2, 6, 4)]
    assert not found.nodes


def test_a_factor_passes_only_when_asked():
    model = _model("m = Mul (x, s) y = Relu (m)", arrays={"s": np.float32(2)})
    assert _trace(model)[1].sinks[0].node.op_type == "Mul"
    assert _trace(model, Through(scalars=True))[1].sinks[0].node.op_type == "Relu"


def test_a_mean_over_tokens_passes_and_one_over_channels_does_not():
    arrays = {"a": np.array([1])}
    model = _model("m = ReduceMean <keepdims = 0> (x, a) y = Relu (m)", arrays=arrays)
    shapes = concrete_shapes(model)
    labels = channel_labels(shapes["x"])
    found = trace(model.graph, model.graph.inputs[0], labels, shapes, Through(means=True))
    assert found.sinks[0].labels.tolist() == [[0, 1, 2, 3]]

    model = _model("m = ReduceMean (x, a) y = Relu (m)", arrays={"a": np.array([2])})
    found = trace(model.graph, model.graph.inputs[0], labels, shapes, Through(means=True))
    assert found.sinks[0].node.op_type == "ReduceMean"


def test_a_graph_output_on_the_way_is_reported():
    _, found = _trace(_model("y = Identity (x)"))
    assert [value.name for value in found.outputs] == ["y"]


def test_shapes_behind_shape_arithmetic_are_known():
    body = """
      s = Shape <start = 0, end = 1> (x) t = Concat <axis = 0> (s, rest)
      y = Reshape (x, t)
    """
    model = _model(body, out="[b, c]", arrays={"rest": np.array([24])})
    assert concrete_shapes(model, 3)["y"] == (3, 24)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[0, 1], [0, 1]], [0, 1]),
        ([[1, 0], [ZERO, ZERO]], [1, 0]),
        ([[0, 1], [1, 0]], None),
        ([[0, FOREIGN], [0, 1]], None),
        ([[0, ZERO], [0, ZERO]], None),
    ],
)
def test_channel_map(labels, expected):
    found = channel_map(np.array(labels, np.int32))
    assert (found is None and expected is None) or found.tolist() == expected
