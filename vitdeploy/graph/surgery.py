"""Small, exact edits of an ONNX graph in memory: constants, readers, replacement, removal.

Every other graph pass edits through these, so that shared initialisers, graph outputs and dtypes
are handled in one place. No pattern and no arithmetic lives here.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[np.generic]
Float64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


def constant_of(value: ir.Value | None) -> Array | None:
    """Return the array of an initialiser or Constant output, or None for anything else."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def scalar_of(value: ir.Value | None) -> float | None:
    """Return the single element of a constant of one element, or None."""
    if value is None or (value.shape is not None and len(value.shape) > 6):
        return None
    array = constant_of(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def ints_of(value: ir.Value | None) -> list[int] | None:
    """Return a constant integer tensor as a flat list, or None."""
    array = constant_of(value)
    return None if array is None else [int(x) for x in array.reshape(-1)]


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return the integer attribute `name` of `node`, or `default` where it is absent."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def ints_attribute(node: ir.Node, name: str) -> list[int] | None:
    """Return the integer-list attribute `name` of `node`, or None where it is absent."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(x) for x in attribute.as_ints()]


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """Return the float attribute `name` of `node`, or `default` where it is absent."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())


def readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return the (node, input index) pairs that read `value`; graph outputs are not among them."""
    return [(use.node, use.idx) for use in value.uses()]


def sole_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value`, or None (several, none, or a graph output)."""
    uses = readers(value)
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0][0]


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the other input of a two-input node that reads `value`."""
    if len(node.inputs) != 2:
        return None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    return None if other is value else other


def fresh_name(graph: ir.Graph, wish: str) -> str:
    """Return `wish`, or `wish_1`, `wish_2`, ... whichever no value of `graph` carries."""
    taken = set(graph.initializers) | {value.name for value in graph.inputs}
    taken |= {value.name for node in graph for value in node.outputs}
    if wish not in taken:
        return wish
    number = 1
    while f"{wish}_{number}" in taken:
        number += 1
    return f"{wish}_{number}"


def new_constant_(graph: ir.Graph, wish: str, array: Array) -> ir.Value:
    """Register `array` as an initialiser under a name near `wish` and return its value."""
    name = fresh_name(graph, wish)
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def set_constant_(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> None:
    """Give input `index` of `node` the constant `array`, cast to the dtype it had.

    A constant that other nodes share, or that is no initialiser, is not touched: the node gets its
    own copy.
    """
    old = node.inputs[index]
    if old is None:
        raise ValueError(f"{node.name} has no input {index} to overwrite")
    before = constant_of(old)
    if before is None:
        raise ValueError(f"input {index} of {node.name} is not a constant")
    cast = np.asarray(array, dtype=before.dtype, order="C")
    if len(readers(old)) == 1 and old.is_initializer() and not old.is_graph_output():
        old.const_value = ir.tensor(cast, name=old.name)
        old.shape = ir.Shape(cast.shape)
        return
    node.replace_input_with(index, new_constant_(graph, old.name or "constant", cast))


def replace_(graph: ir.Graph, old: ir.Value, new: ir.Value) -> bool:
    """Let every reader of `old` read `new`; return False, changing nothing, where impossible.

    A graph output keeps its name: `new` takes it over. That cannot be done where `new` is a graph
    input, an initialiser or an output itself.
    """
    if old.is_graph_output():
        if new.is_graph_input() or new.is_graph_output() or new.producer() is None:
            return False
        name = old.name
        old.name = fresh_name(graph, f"{name}_before")
        new.name = name
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    return True


def insert_after_(anchor: ir.Value, node: ir.Node) -> ir.Value:
    """Put `node` (which reads `anchor`) after its producer; its output takes all other readers.

    Args:
        anchor: A value made by a node of the graph.
        node: A new node with one output that reads `anchor`.

    Returns:
        The output of `node`.
    """
    producer = anchor.producer()
    if producer is None or producer.graph is None:
        raise ValueError(f"{anchor.name} has no producer to insert after")
    graph = producer.graph
    others = [(user, index) for user, index in readers(anchor) if user is not node]
    graph.insert_after(producer, node)
    out = node.outputs[0]
    out.shape, out.type = anchor.shape, anchor.type
    for user, index in others:
        user.replace_input_with(index, out)
    if anchor.is_graph_output():
        for position, value in enumerate(graph.outputs):
            if value is anchor:
                graph.outputs[position] = out
        out.name, anchor.name = anchor.name, fresh_name(graph, f"{anchor.name}_before")
    return out


def remove_dead_(graph: ir.Graph) -> int:
    """Remove nodes without readers and initialisers without use; return how many nodes went."""
    count = 0
    for node in reversed(list(graph)):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        graph.remove(node, safe=True)
        count += 1
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return count


def node_names(nodes: Iterable[ir.Node]) -> str:
    """Return the names of `nodes`, comma-separated, for a reason or a message."""
    return ", ".join(node.name or node.op_type for node in nodes)
