"""No-ops, layout chains and mask guards: removed where exact for every batch, else kept."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.graph import cleanup


def _model(body, arrays=None, out="[batch, 6, 4]"):
    head = f"(float[batch, 6, 4] x) => (float{out} y)"
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {head} {{{body}}}')
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (arrays or {}).items()
    )
    return ir.from_proto(proto)


def _ops(model):
    return [node.op_type for node in model.graph]


NOOPS = [
    ("a = Identity (x) y = Relu (a)", {}),
    ("a = Reshape (x, s) y = Relu (a)", {"s": np.array([-1, 6, 4])}),
    ("a = Pad (x, s) y = Relu (a)", {"s": np.zeros(6, np.int64)}),
    ("a = Transpose <perm = [0, 1, 2]> (x) y = Relu (a)", {}),
    ("a = Cast <to = 1> (x) y = Relu (a)", {}),
    ("a = Dropout (x) y = Relu (a)", {}),
    ("a = Mul (x, s) y = Relu (a)", {"s": np.float32(1)}),
    ("a = Add (s, x) y = Relu (a)", {"s": np.float32(0)}),
    ("a = Concat <axis = 1> (x) y = Relu (a)", {}),
]


@pytest.mark.parametrize(("body", "arrays"), NOOPS)
def test_a_noop_goes(body, arrays):
    model = _model(body, arrays)
    assert cleanup.remove_noops_(model) == 1
    assert _ops(model) == ["Relu"]


KEPT = [
    ("a = Reshape (x, s) y = Relu (a)", {"s": np.array([-1, 4, 6])}),
    ("a = Transpose <perm = [0, 2, 1]> (x) y = Relu (a)", {}),
    ("a = Mul (x, s) y = Relu (a)", {"s": np.float32(2)}),
    ("a = Div (s, x) y = Relu (a)", {"s": np.float32(1)}),
    ("a = Add (x, s) y = Relu (a)", {"s": np.zeros((1, 1, 1, 1), np.float32)}),  # widens
    ("a = Cast <to = 11> (x) y = Relu (a)", {}),
    # equal to its input at batch 2 only
    ("a = Reshape (x, s) y = Relu (a)", {"s": np.array([2, 6, -1])}),
]


@pytest.mark.parametrize(("body", "arrays"), KEPT)
def test_what_does_something_stays(body, arrays):
    model = _model(body, arrays, out="[?, ?, ?]")
    before = _ops(model)
    assert cleanup.remove_noops_(model) == 0
    assert _ops(model) == before


def test_a_chain_that_permutes_becomes_one_transpose():
    body = """
      a = Reshape (x, s) b = Transpose <perm = [0, 2, 1]> (a) c = Reshape (b, t) y = Relu (c)
    """
    arrays = {"s": np.array([-1, 6, 4]), "t": np.array([-1, 4, 6])}
    model = _model(body, arrays, out="[batch, 4, 6]")
    assert cleanup.collapse_layout_chains_(model) == 1
    assert _ops(model) == ["Transpose", "Relu"]
    assert list(model.graph[0].attributes["perm"].as_ints()) == [0, 2, 1]


def test_two_transposes_that_undo_each_other_vanish():
    body = "a = Transpose <perm = [0, 2, 1]> (x) b = Transpose <perm = [0, 2, 1]> (a) y = Relu (b)"
    model = _model(body)
    cleanup.collapse_layout_chains_(model)
    assert _ops(model) == ["Relu"]


def test_a_window_partition_is_no_permutation_of_axes():
    body = """
      a = Reshape (x, s) b = Transpose <perm = [0, 2, 1, 3]> (a) c = Reshape (b, t) y = Relu (c)
    """
    arrays = {"s": np.array([-1, 2, 3, 4]), "t": np.array([-1, 6, 4])}
    model = _model(body, arrays)
    assert cleanup.collapse_layout_chains_(model) == 0


GUARD = "m = Add (x, s) p = Softmax (m) n = IsNaN (p) y = Where (n, zero, p)"


@pytest.mark.parametrize(("mask", "kept"), [(-1e4, False), (-np.inf, True)])
def test_a_nan_guard_goes_only_where_no_mask_can_empty_a_row(mask, kept):
    body = GUARD.replace("Add (x, s)", "Add (q, s)").replace("m =", "q = MatMul (x, w) m =", 1)
    table = np.zeros((6, 4), np.float32)
    table[0] = mask
    arrays = {"s": table, "w": np.eye(4, dtype=np.float32), "zero": np.float32(0)}
    model = _model(body + " ", arrays)
    cleanup.remove_mask_guards_(model)
    assert ("Where" in _ops(model)) == kept
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_mask_that_masks_nothing_goes():
    body = "e = Expand (t, s) m = Where (e, zero, low) a = Add (x, m) y = Relu (a)"
    arrays = {
        "t": np.ones((1, 6, 1), bool),
        "s": np.array([1, 6, 4]),
        "zero": np.float32(0),
        "low": np.float32(-3e38),
    }
    model = _model(body, arrays)
    assert cleanup.remove_mask_guards_(model) == 1
    cleanup.remove_noops_(model)
    assert _ops(model) == ["Relu"]


def test_a_mask_that_masks_stays():
    body = "e = Expand (t, s) m = Where (e, zero, low) a = Add (x, m) y = Relu (a)"
    keep = np.ones((1, 6, 1), bool)
    keep[0, 0] = False
    arrays = {"t": keep, "s": np.array([1, 6, 4]), "zero": np.float32(0), "low": np.float32(-9)}
    model = _model(body, arrays)
    assert cleanup.remove_mask_guards_(model) == 0


def test_constant_nodes_of_several_outputs_are_folded():
    body = "p, q = Split <axis = 0, num_outputs = 2> (t) a = Mul (x, p) y = Add (a, q)"
    model = _model(body, {"t": np.arange(8, dtype=np.float32).reshape(2, 4)})
    cleanup.normalise_storage_(model)
    assert _ops(model) == ["Mul", "Add"]


def test_shapes_are_written_with_the_batch_as_symbol():
    model = _model("a = Reshape (x, s) y = Relu (a)", {"s": np.array([-1, 4])}, out="[?, 4]")
    cleanup.annotate_shapes_(model)
    shape = model.graph[0].outputs[0].shape
    assert (str(shape[0].value), shape[1]) == ("6*batch", 4)
