"""Readable, unique node names, and no trace of the machine that exported the graph.

Names come from torch's module scope where the file has it, else from the name the node has, else
from the weight it reads. Names are for people: no pass takes meaning from them.
"""

import ast
import re

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_ANONYMOUS = re.compile(r"^(node_|val_|n\d+$|\d+$)|^$")


def name_nodes_(model: ir.Model) -> None:
    """Give every node a unique name such as `blocks.0.attn.qkv/MatMul`; idempotent."""
    taken: set[str] = set()
    for node in model.graph:
        wish = _wish(node)
        name, number = wish, 1
        while name in taken:
            name, number = f"{wish}_{number}", number + 1
        taken.add(name)
        node.name = name


def _wish(node: ir.Node) -> str:
    scope = _module_scope(node)
    if scope is not None:
        return f"{scope}/{node.op_type}" if scope else node.op_type
    if node.name and not _ANONYMOUS.match(node.name):
        return str(node.name)
    for value in node.inputs[1:]:
        if value is not None and value.is_initializer() and "." in str(value.name):
            return f"{str(value.name).rsplit('.', 1)[0]}/{node.op_type}"
    return str(node.op_type)


def _module_scope(node: ir.Node) -> str | None:
    """Return the path of the torch module that made `node`, or None where the file has none."""
    text = node.metadata_props.get(_SCOPES)
    if not text:
        return None
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return str(scopes[-2]) if len(scopes) > 1 else ""


def name_weights_(model: ir.Model) -> None:
    """Name the anonymous weight of each layer after its node: `blocks.0.attn.qkv.weight`."""
    for node in model.graph:
        if node.op_type not in {"MatMul", "Gemm", "Conv"} or "/" not in str(node.name):
            continue
        value = node.inputs[1]
        if value is None or not value.is_initializer() or not _ANONYMOUS.match(str(value.name)):
            continue
        name = f"{str(node.name).rsplit('/', 1)[0]}.weight"
        if name not in model.graph.initializers:
            value.name = name


def clear_metadata_(model: ir.Model) -> None:
    """Remove all metadata and doc strings: they hold stack traces and paths of the exporter."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            values.extend(node.outputs)
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None
