"""A graph as the rules read it: all nodes, which values are constant, types and shapes.

Any graph is taken: without shapes, with functions (inlined), with the bodies of If and Loop. Values
of constants are read only when a rule asks, so that a file of many gigabytes costs little.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from vitdeploy.graph.opset import CONTROL_FLOW, STANDARD_DOMAINS
from vitdeploy.graph.surgery import Array

Dims = tuple[int | None, ...]

_UNPREDICTABLE = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
)
_SMALL = 1024
"""Elements up to which a constant takes part in shape inference; larger ones are weights."""


@dataclass(frozen=True)
class Known:
    """What the file does not say, and who lints may."""

    profiled: frozenset[str] = frozenset()
    """Inputs whose dynamic dimensions get an optimisation profile when the engine is built."""
    is_packaged: bool = False
    """Whether a package beside the file builds it, with no profiles but those."""
    compute_capability: tuple[int, int] | None = None
    """Of the card, such as (8, 7) for Jetson Orin."""
    largest: Mapping[str, float] = field(default_factory=dict)
    """Largest |x| of values by name, as measured on images."""


@dataclass(frozen=True, eq=False)
class LintGraph:
    """A model, and what follows from it."""

    model: ir.Model
    opset: int
    nodes: tuple[ir.Node, ...]
    """Of the graph and of all subgraphs, parents before what reads them."""
    static: frozenset[ir.Value]
    """Values that depend on no input."""
    known: Known
    functions: tuple[str, ...]
    """Names of the local functions that were inlined."""
    unmade: tuple[str, ...]
    """Values that are read and that nothing makes: the graph is invalid and was not copied."""
    inferred: onnx.ModelProto
    """The graph with what ONNX infers; its weights are inputs here."""
    shapes: Mapping[str, Dims]
    types: Mapping[str, ir.DataType]
    file: Path | None
    """Where the model was read from."""

    def of(self, *operators: str) -> Iterator[ir.Node]:
        """Yield the nodes of these standard operators."""
        for node in self.nodes:
            if node.op_type in operators and is_standard(node):
                yield node

    def has(self, *operators: str) -> bool:
        """Return whether there is a node of one of these standard operators."""
        return next(self.of(*operators), None) is not None

    def is_static(self, value: ir.Value | None) -> bool:
        """Return whether a value is there and depends on no input."""
        return value is not None and value in self.static

    def constant(self, value: ir.Value | None) -> Array | None:
        """Return the array of a constant, or None; Identity is looked through."""
        while value is not None:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is not None:
                return np.asarray(tensor.numpy())
            node = value.producer()
            if node is None or node.op_type != "Identity":
                return None
            value = node.inputs[0]
        return None

    def shape(self, value: ir.Value | None) -> Dims | None:
        """Return the dimensions of a value, None for those that are not fixed, or None."""
        if value is None:
            return None
        if value.const_value is not None:
            return tuple(int(size) for size in value.const_value.shape.numpy())
        inferred = self.shapes.get(str(value.name))
        return inferred if value.shape is None or inferred else _dims(value.shape)

    def type_of(self, value: ir.Value | None) -> ir.DataType | None:
        """Return the element type of a value, or None where it is not known."""
        if value is None:
            return None
        if value.const_value is not None:
            return value.const_value.dtype
        return value.dtype or self.types.get(str(value.name))

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The inputs that are no constants."""
        constants = self.model.graph.initializers
        return tuple(v for v in self.model.graph.inputs if v.name not in constants)

    @property
    def constants(self) -> tuple[ir.Value, ...]:
        """All initialisers and results of Constant nodes."""
        stored = [v for g in _graphs(self.model) for v in g.initializers.values()]
        made = [v for node in self.of("Constant") for v in node.outputs]
        return (*stored, *made)


def lint_graph(model: ir.Model, known: Known, file: Path | None = None) -> LintGraph:
    """Return the view of a model; `model` itself stays as it is, its tensors are shared."""
    functions = tuple(f"{f.domain}.{f.name}" for f in model.functions.values())
    unmade = _unmade(model)
    if functions and not unmade:
        model = model.clone()
        InlinePass()(model)
    nodes = tuple(ir.traversal.RecursiveGraphIterator(model.graph))
    inferred = onnx.ModelProto() if unmade else _inferred(model)
    shapes: dict[str, Dims] = {}
    types: dict[str, ir.DataType] = {}
    for value in _value_infos(inferred.graph):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            types[value.name] = ir.DataType(tensor.elem_type)
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
            )
    return LintGraph(
        model=model,
        opset=model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)),
        nodes=nodes,
        static=_static(model, nodes),
        known=known,
        functions=functions,
        unmade=unmade,
        inferred=inferred,
        shapes=shapes,
        types=types,
        file=file,
    )


def name_of(node: ir.Node) -> str:
    """Return a node's name, or its operator and outputs where it has none."""
    if node.name:
        return str(node.name)
    outputs = ", ".join(str(value.name) for value in node.outputs if value.name)
    return f"{node.op_type} -> {outputs or 'nothing'}"


def is_standard(node: ir.Node) -> bool:
    """Return whether a node's operator is one of ONNX itself."""
    return node.domain in STANDARD_DOMAINS


def text(node: ir.Node, name: str, default: str) -> str:
    """Return a text attribute of `node`, or `default`."""
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.as_string())


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return input `index` of a node, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def control_flow(nodes: Iterable[ir.Node]) -> tuple[ir.Node, ...]:
    """Return the nodes that run a subgraph."""
    return tuple(n for n in nodes if is_standard(n) and n.op_type in CONTROL_FLOW)


def _unmade(model: ir.Model) -> tuple[str, ...]:
    bodies: list[ir.Graph | ir.Function] = [*_graphs(model)]
    for function in model.functions.values():
        bodies += [function, *function.subgraphs()]
    made = {v for body in bodies for v in body.inputs}
    made |= {v for g in _graphs(model) for v in g.initializers.values()}
    made |= {v for body in bodies for node in body for v in node.outputs}
    read = [v for body in bodies for node in body for v in node.inputs]
    return tuple(dict.fromkeys(str(v.name) for v in read if v is not None and v not in made))


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()


def _static(model: ir.Model, nodes: Iterable[ir.Node]) -> frozenset[ir.Value]:
    static = {v for graph in _graphs(model) for v in graph.initializers.values()}
    for node in nodes:
        runs_graph = any(a.type in _GRAPH_ATTRIBUTES for a in node.attributes.values())
        if runs_graph or node.op_type in _UNPREDICTABLE:
            continue
        if all(value is None or value in static for value in node.inputs):
            static.update(node.outputs)
    return frozenset(static)


_GRAPH_ATTRIBUTES = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


def _dims(shape: ir.Shape) -> Dims:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _inferred(model: ir.Model) -> onnx.ModelProto:
    """Return the graph without its weights, with the shapes and types that ONNX infers."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.size <= _SMALL:
            value.const_value = ir.tensor(tensor.numpy(), tensor.dtype, name=name)
            continue
        del copy.graph.initializers[name]
        value.const_value = None
        value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)
        if value not in copy.graph.inputs:
            copy.graph.inputs.append(value)
    proto = ir.to_proto(copy)
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return proto


def _value_infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.value_info, *graph.output)
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _value_infos(body)
