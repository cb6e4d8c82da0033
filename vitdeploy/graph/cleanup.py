"""Removes what computes nothing: no-op nodes, layout chains that are one Transpose, mask guards.

Each rewrite is exact for every batch size; a claim about shapes is checked at two of them.
Fusions of arithmetic live in `fusion`.
"""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from vitdeploy.graph.constants import fold_constants_
from vitdeploy.graph.layout import concrete_shapes, infer
from vitdeploy.graph.layout_ops import LAYOUT, Labels, Shapes, step
from vitdeploy.graph.surgery import (
    constant_of,
    ints_attribute,
    ints_of,
    new_constant_,
    remove_dead_,
    replace_,
    scalar_of,
    sole_reader,
)

BATCHES = (2, 3)
"""Two batch sizes at which a rewrite must hold, so that no coincidence of dimensions passes."""

_SAME_SHAPE_OPS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Pad"})
_CHAIN_OPS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


def normalise_storage_(model: ir.Model) -> None:
    """Make every constant an initialiser that is no graph input, and fold constant arithmetic."""
    ir_passes.RemoveInitializersFromInputsPass()(model)
    fold_constants_(model)
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    # not by IdentityEliminationPass (onnx_ir 1.1), which makes two outputs of one value into one
    for node in list(model.graph):
        if node.op_type == "Identity" and node.inputs[0] is not None:
            replace_(model.graph, node.outputs[0], node.inputs[0])
    remove_dead_(model.graph)


def annotate_shapes_(model: ir.Model) -> None:
    """Write the shape of every value, with the batch as the one symbol.

    A dimension is taken as a multiple of the batch where it is one at both `BATCHES`.
    """
    names = [value.shape[0] for value in model.graph.inputs if value.shape]
    symbols = {str(name.value) for name in names if isinstance(name, ir.SymbolicDim)}
    if len(symbols) > 1:
        return
    symbol = next(iter(symbols), "batch")
    first, second = (infer(model, batch) for batch in BATCHES)
    for node in model.graph:
        for value in node.outputs:
            name = str(value.name)
            small, large = first.shapes.get(name), second.shapes.get(name)
            if small is None or large is None or len(small) != len(large):
                continue
            if value.type is None:
                value.type = ir.TensorType(ir.DataType(first.types[name]))
            dims = [_dimension(a, b, symbol) for a, b in zip(small, large, strict=True)]
            if all(dim is not None for dim in dims):
                value.shape = ir.Shape(dims)


def _dimension(small: int, large: int, symbol: str) -> int | str | None:
    if small == large:
        return small
    factor = small // BATCHES[0]
    if (factor * BATCHES[0], factor * BATCHES[1]) != (small, large):
        return None
    return symbol if factor == 1 else f"{factor}*{symbol}"


def fold_shape_arithmetic_(model: ir.Model) -> int:
    """Replace values that follow from shapes and are the same at both `BATCHES` by constants.

    Older exporters compute 1/sqrt(head_dim), bounds of slices and the like from Shape. Returns
    the number of values replaced.
    """
    small, large = (infer(model, batch).constants for batch in BATCHES)
    count = 0
    for node in list(model.graph):
        for value in node.outputs:
            name = str(value.name)
            if name in small and name in large and np.array_equal(small[name], large[name]):
                constant = new_constant_(model.graph, name, small[name])
                count += int(_is_read(value) and replace_(model.graph, value, constant))
    remove_dead_(model.graph)
    return count


def fix_reshapes_(model: ir.Model) -> int:
    """Give each Reshape with a computed target a constant one, and return how many.

    Older exporters compute targets from Shape. Where all dimensions but one are the same at both
    `BATCHES`, that one is the -1 of a constant target.
    """
    shapes = [concrete_shapes(model, batch) for batch in BATCHES]
    count = 0
    for node in model.graph:
        if node.op_type != "Reshape" or constant_of(node.inputs[1]) is not None:
            continue
        small, large = (known.get(str(node.outputs[0].name)) for known in shapes)
        if small is None or large is None or len(small) != len(large):
            continue
        dims = [a if a == b else -1 for a, b in zip(small, large, strict=True)]
        if dims.count(-1) == 1 and 0 not in dims:
            target = new_constant_(model.graph, f"{node.name}.shape", np.array(dims, np.int64))
            node.replace_input_with(1, target)
            count += 1
    remove_dead_(model.graph)
    return count


def remove_noops_(model: ir.Model) -> int:
    """Remove nodes whose output equals their input and return how many went."""
    shapes = [concrete_shapes(model, batch) for batch in BATCHES]
    count = 0
    for node in list(model.graph):
        source = _noop_source(node, shapes)
        if source is not None and replace_(model.graph, node.outputs[0], source):
            count += 1
    remove_dead_(model.graph)
    return count


def _noop_source(node: ir.Node, shapes: list[Shapes]) -> ir.Value | None:
    """Return the input that `node` passes on unchanged, or None."""
    op, data = node.op_type, node.inputs[0] if node.inputs else None
    if data is None:
        return None
    if op == "Identity" or (op == "Concat" and len(node.inputs) == 1):
        return data
    if op == "Dropout":
        unused = all(not out.uses() for out in node.outputs[1:])
        training = len(node.inputs) > 2 and node.inputs[2] is not None
        return data if unused and not training else None
    if op == "Cast":
        same = node.attributes["to"].as_int() == (data.dtype.value if data.dtype else -1)
        return data if same else None
    if op in {"Mul", "Add", "Div", "Sub"}:
        return _neutral_source(node, shapes)
    if not all(_kept_shape(node, known) for known in shapes):
        return None
    if op in _SAME_SHAPE_OPS or (op == "Slice" and _has_unit_steps(node)):
        return data
    if op == "Transpose":
        perm = ints_attribute(node, "perm")
        return data if perm == sorted(perm or [1]) else None
    return None


def _kept_shape(node: ir.Node, shapes: Shapes, index: int = 0) -> bool:
    before, after = shapes.get(str(node.inputs[index].name)), shapes.get(str(node.outputs[0].name))
    return before is not None and before == after


def _has_unit_steps(node: ir.Node) -> bool:
    return len(node.inputs) < 5 or set(ints_of(node.inputs[4]) or [0]) == {1}


def _neutral_source(node: ir.Node, shapes: list[Shapes]) -> ir.Value | None:
    neutral = 1.0 if node.op_type in {"Mul", "Div"} else 0.0
    for index, other in ((0, 1), (1, 0)):
        if index == 1 and node.op_type in {"Div", "Sub"}:
            break
        kept = all(_kept_shape(node, known, index) for known in shapes)
        if scalar_of(node.inputs[other]) == neutral and kept:
            source: ir.Value = node.inputs[index]
            return source
    return None


def collapse_layout_chains_(model: ir.Model) -> int:
    """Replace chains of layout nodes that amount to one permutation of axes by one Transpose.

    The torch exporter writes k^T as Shape, Slice, Concat, Reshape, Transpose, Reshape; a quantiser
    and OpenVINO's attention fusion need the Transpose. Returns the number of chains replaced.
    """
    total = 0
    while (count := _collapse_once_(model)) > 0:
        total += count  # what one pass kills may have been the second reader of another chain
    return total


def _collapse_once_(model: ir.Model) -> int:
    shapes = [concrete_shapes(model, batch) for batch in BATCHES]
    count = 0
    for node in list(model.graph):
        if node.op_type not in _CHAIN_OPS or not _is_read(node.outputs[0]):
            continue
        chain = _chain_from(node)
        for length in range(len(chain), 1, -1):
            if not _is_read(chain[length - 1].outputs[0]):
                break  # replaced just now, and not yet removed
            perms = [_permutation(chain[:length], known) for known in shapes]
            if perms[0] is not None and all(perm == perms[0] for perm in perms):
                count += _replace_chain_(model.graph, chain[:length], perms[0], shapes[0])
                break
    remove_dead_(model.graph)
    return count


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _chain_from(node: ir.Node) -> list[ir.Node]:
    chain = [node]
    while (reader := sole_reader(chain[-1].outputs[0])) is not None:
        if reader.op_type not in _CHAIN_OPS or reader.inputs[0] is not chain[-1].outputs[0]:
            break
        chain.append(reader)
    return chain


def _permutation(chain: list[ir.Node], shapes: Shapes) -> list[int] | None:
    """Return the axis permutation that `chain` performs on concrete `shapes`, or None."""
    before = shapes.get(str(chain[0].inputs[0].name))
    after = shapes.get(str(chain[-1].outputs[0].name))
    if before is None or after is None or sorted(before) != sorted(after):
        return None
    start = np.arange(np.prod(before), dtype=np.int32).reshape(before)
    labels: Labels | None = start
    for node in chain:
        assert labels is not None
        made = step(node, {node.inputs[0]: labels}, shapes, LAYOUT)
        if made is None:
            return None
        labels = made[0]
    assert labels is not None
    strides = [int(np.prod(before[axis + 1 :])) for axis in range(len(before))]
    perm: list[int] = []
    for axis, size in enumerate(after):
        second = int(np.take(labels, 1, axis=axis).min()) if size > 1 else None
        options = [
            a
            for a, s in enumerate(strides)
            if a not in perm and before[a] == size and (second is None or s == second)
        ]
        if not options:
            return None
        perm.append(options[0])
    return perm if np.array_equal(start.transpose(perm), labels) else None


def _replace_chain_(graph: ir.Graph, chain: list[ir.Node], perm: list[int], shapes: Shapes) -> int:
    source, last = chain[0].inputs[0], chain[-1]
    if perm == sorted(perm):
        return int(replace_(graph, last.outputs[0], source))
    node = ir.node("Transpose", [source], attributes={"perm": perm}, name=last.name)
    node.metadata_props.update(last.metadata_props)
    out, old = node.outputs[0], last.outputs[0]
    out.name, out.type = f"{old.name}_permuted", old.type
    if source.shape is not None:
        out.shape = ir.Shape([source.shape[axis] for axis in perm])
    graph.insert_after(last, node)
    return int(replace_(graph, old, out))


def remove_mask_guards_(model: ir.Model) -> int:
    """Remove masks that mask nothing, and the NaN guard behind a softmax that cannot make NaN.

    `Where` with a condition that is true everywhere is its second input. `Where(IsNaN(p), 0, p)`
    guards rows that a mask of minus infinity emptied; without such a mask only NaN inputs differ.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "Where":
            continue
        truth = _uniform_truth(node.inputs[0])
        kept = node.inputs[1] if truth else node.inputs[2]
        if truth is not None and scalar_of(kept) is not None:
            value = new_constant_(model.graph, "mask", constant_of(kept))  # type: ignore[arg-type]
            count += int(replace_(model.graph, node.outputs[0], value))
        elif _is_needless_guard(node):
            count += int(replace_(model.graph, node.outputs[0], node.inputs[2]))
    remove_dead_(model.graph)
    return count


def _uniform_truth(value: ir.Value) -> bool | None:
    """Return the one truth value that `value` holds everywhere, or None."""
    node = value.producer()
    while node is not None and node.op_type in {"Expand", "Reshape", "Unsqueeze", "Identity"}:
        value = node.inputs[0]
        node = value.producer()
    array = constant_of(value)
    if array is None or not array.size or array.min() != array.max():
        return None
    return bool(array.reshape(-1)[0])


def _is_needless_guard(node: ir.Node) -> bool:
    test, softmax = node.inputs[0].producer(), node.inputs[2].producer()
    if test is None or test.op_type != "IsNaN" or test.inputs[0] is not node.inputs[2]:
        return False
    if softmax is None or softmax.op_type != "Softmax" or scalar_of(node.inputs[1]) != 0.0:
        return False
    scores = softmax.inputs[0].producer()
    while scores is not None and scores.op_type in {"Add", "Reshape", "Mul", "Div"}:
        mask = constant_of(scores.inputs[1])
        if scores.op_type == "Add" and (mask is None or not bool(np.isfinite(mask).all())):
            return False
        scores = scores.inputs[0].producer()
    return scores is not None and scores.op_type == "MatMul"
