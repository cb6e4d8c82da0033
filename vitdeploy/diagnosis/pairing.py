"""The FP32 graph and its INT8 artefact in one graph, so that one run sees both side by side.

Products, blocks and LayerNorms are matched by name. Nothing is measured here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.errors import DataError
from vitdeploy.graph.attention import find_attention
from vitdeploy.graph.cleanup import annotate_shapes_
from vitdeploy.graph.gemm import matmul_from_gemm_
from vitdeploy.graph.layout_ops import LAYOUT_OPS
from vitdeploy.graph.linear import linear_at
from vitdeploy.graph.packed_qkv import split_qkv_
from vitdeploy.graph.pointwise import matmul_from_pointwise_conv_
from vitdeploy.graph.sites import WeightSite, find_weight_sites
from vitdeploy.graph.surgery import constant_of, other_input, readers, sole_reader

PREFIX = "artefact//"
"""Of every name that comes from the artefact."""
_BLOCK = re.compile(r"^(?:.*[./])?(?:blocks?|layers?|stages?|resblocks)\.\d+(?=[./])")
_PASSED = LAYOUT_OPS | {"ReduceMean", "GlobalAveragePool", "Pad", "Cast"}


@dataclass(frozen=True, eq=False)
class SitePair:
    """One product with weights in both graphs."""

    reference: WeightSite
    reference_output: ir.Value
    """Bias included."""
    input: ir.Value
    """The artefact's float activation, before it is quantised."""
    output: ir.Value
    """The artefact's output, bias and quantisation of the output included."""
    quantize: ir.Node | None
    """QuantizeLinear of the input; None where the product is in float."""
    folds_input: bool
    """Whether an exact fold may have scaled and shifted the channels of the input."""
    norms: tuple[ir.Node, ir.Node] | None
    """The LayerNorm whose channels the input holds, in both graphs."""
    folds_output: bool
    """Whether one may have done so with the channels of the output."""

    @property
    def name(self) -> str:
        """Of the product, in the FP32 graph."""
        return self.reference.name

    @property
    def block(self) -> str:
        """See `block_of`."""
        return block_of(self.name)


@dataclass(frozen=True, eq=False)
class BlockPair:
    """A block's output in both graphs."""

    name: str
    reference: ir.Value
    output: ir.Value


@dataclass(frozen=True, eq=False)
class NormPair:
    """A LayerNorm's output in both graphs."""

    name: str
    reference: ir.Node
    output: ir.Value | None
    """None where the artefact has no such node."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Both graphs in one model, without outputs of its own."""

    model: ir.Model
    sites: tuple[SitePair, ...]
    blocks: tuple[BlockPair, ...]
    norms: tuple[NormPair, ...]
    outputs: tuple[tuple[ir.Value, ir.Value], ...]
    """(FP32, artefact) of each output of the model."""


def block_of(name: str) -> str:
    """Return the block in a node's name, such as `layers.0.blocks.1`; empty where there is none."""
    found = _BLOCK.match(name)
    return found.group(0) if found else ""


def pair_models(reference: ir.Model, artefact: ir.Model, *, quantized: bool = True) -> Pair:
    """Return both graphs in one; neither argument is changed.

    Args:
        reference: the canonical FP32 graph.
        artefact: what `compress.int8` made of it.
        quantized: False takes the quantisation of activations away, weights stay rounded.

    Raises:
        DataError: the graphs are not of one model.
    """
    model = in_form_of(artefact, reference)
    other = artefact.clone()
    quantizers = _input_quantizers(other)
    if not quantized:
        _strip_activations_(other)
    attention = _attention_columns(model)
    sites = find_weight_sites(model)
    own = {str(node.name): node for node in model.graph}
    nodes = {str(node.name): node for node in other.graph}
    outputs = list(zip(model.graph.outputs, other.graph.outputs, strict=True))
    _require_same(sites, nodes, outputs)
    pairs = tuple(_site_pair(s, nodes, quantizers, attention) for s in sites)
    blocks = tuple(_block_pairs(own, nodes))
    norms = tuple(
        NormPair(name, node, nodes[name].outputs[0] if name in nodes else None)
        for name, node in own.items()
        if node.op_type == "LayerNormalization"
    )
    _merge_(model, other)
    return Pair(model, pairs, blocks, norms, tuple(outputs))


def clone_segment(
    graph: ir.Graph, output: ir.Value, replaced: Mapping[ir.Value, ir.Value]
) -> ir.Value:
    """Return `output` computed anew from other inputs, by copies of the nodes in between.

    Args:
        graph: where the copies go.
        output: what to compute.
        replaced: value -> what stands for it; what depends on none of them is not copied.
    """
    done: dict[ir.Value, ir.Value] = dict(replaced)
    stack = [output]
    while stack:
        value = stack[-1]
        node = value.producer()
        if value in done or node is None:
            done.setdefault(value, value)
            stack.pop()
            continue
        missing = [v for v in node.inputs if v is not None and v not in done]
        if missing:
            stack.extend(missing)
            continue
        inputs = [None if v is None else done[v] for v in node.inputs]
        if all(new is old for new, old in zip(inputs, node.inputs, strict=True)):
            done.update({v: v for v in node.outputs if v not in done})
            continue
        copy = ir.node(
            node.op_type,
            inputs,
            attributes=dict(node.attributes),
            domain=node.domain,
            num_outputs=len(node.outputs),
        )
        graph.append(copy)
        done.update(
            {v: new for v, new in zip(node.outputs, copy.outputs, strict=True) if v not in done}
        )
    return done[output]


def in_form_of(artefact: ir.Model, reference: ir.Model) -> ir.Model:
    """Return a copy of the FP32 graph after the rewrites the quantiser began with."""
    model = reference.clone()
    matmul_from_gemm_(model)
    kinds = {str(node.name): node.op_type for node in artefact.graph}
    sites = find_weight_sites(model)
    if any(kinds.get(site.name) == "MatMul" for site in sites if site.kind == "Conv"):
        matmul_from_pointwise_conv_(model)
    if any(site.name not in kinds for site in sites):
        split_qkv_(model)
        annotate_shapes_(model)
    return model


def int8_attention(artefact: ir.Model) -> tuple[str, ...]:
    """Return the names of the products of two activations that the artefact has in INT8."""
    return tuple(
        str(node.name)
        for node in artefact.graph
        if node.op_type == "MatMul"
        and all(value is not None and _is_activation_in_int8(value) for value in node.inputs)
    )


def _is_activation_in_int8(value: ir.Value) -> bool:
    dequantize = value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return False
    codes = dequantize.inputs[0]
    return codes is not None and codes.producer() is not None


def _require_same(
    sites: list[WeightSite],
    nodes: Mapping[str, ir.Node],
    outputs: list[tuple[ir.Value, ir.Value]],
) -> None:
    missing = [s.name for s in sites if s.name not in nodes or nodes[s.name].op_type != s.kind]
    if missing or not sites or any(a.name != b.name for a, b in outputs):
        what = f"has no product '{missing[0]}'" if missing else "has other outputs"
        raise DataError(
            f"the INT8 artefact {what}, so it was not made from this FP32 graph. "
            "Export again with --keep-reference."
        )


def _input_quantizers(model: ir.Model) -> dict[str, ir.Node]:
    """Return by product the QuantizeLinear of its input."""
    found = {}
    for node in model.graph:
        if node.op_type in ("MatMul", "Conv") and node.inputs[0] is not None:
            dequantize = node.inputs[0].producer()
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = dequantize.inputs[0].producer() if dequantize.inputs[0] else None
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                found[str(node.name)] = quantize
    return found


def _strip_activations_(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            continue
        quantize = node.inputs[0].producer()
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            for user, index in readers(node.outputs[0]):
                user.replace_input_with(index, quantize.inputs[0])


def _attention_columns(model: ir.Model) -> set[str]:
    """Return the products that make a query, key or value."""
    return {
        projection.linear.name
        for site in find_attention(model)
        for projection in site.projections.values()
    }


def _site_pair(
    site: WeightSite,
    nodes: Mapping[str, ir.Node],
    quantizers: Mapping[str, ir.Node],
    attention: set[str],
) -> SitePair:
    node, quantize = nodes[site.name], quantizers.get(site.name)
    data = node.inputs[0] if quantize is None else quantize.inputs[0]
    assert data is not None
    source = _foldable_source(site.activation)
    own = source if source is not None and source.op_type == "LayerNormalization" else None
    if own is not None and str(own.name) not in nodes:
        own = None
    return SitePair(
        reference=site,
        reference_output=_with_bias(site.node),
        input=data,
        output=_with_quantization(_with_bias(node)),
        quantize=quantize,
        folds_input=source is not None,
        norms=None if own is None else (own, nodes[str(own.name)]),
        folds_output=site.name in attention or site.groups > 1,
    )


def _with_bias(node: ir.Node) -> ir.Value:
    """Return the output of a product behind the Add that holds its bias, if there is one."""
    output = node.outputs[0]
    reader = sole_reader(output)
    if node.op_type != "MatMul" or reader is None or reader.op_type != "Add":
        return output
    bias = constant_of(other_input(reader, output))
    return reader.outputs[0] if bias is not None and bias.ndim == 1 else output


def _with_quantization(output: ir.Value) -> ir.Value:
    """Return what the readers of a convolution with a quantised output see."""
    quantize = sole_reader(output)
    producer = output.producer()
    if producer is None or producer.op_type != "Conv" or quantize is None:
        return output
    if quantize.op_type != "QuantizeLinear":
        return output
    dequantize = sole_reader(quantize.outputs[0])
    return output if dequantize is None else dequantize.outputs[0]


def _foldable_source(value: ir.Value) -> ir.Node | None:
    """Return the LayerNorm, attention product or depthwise convolution that makes the channels."""
    current: ir.Value | None = value
    while current is not None and (node := current.producer()) is not None:
        linear = linear_at(node)
        if node.op_type == "LayerNormalization" or (node.op_type == "MatMul" and linear is None):
            return node
        if linear is not None:
            return node if linear.group > 1 else None
        if node.op_type not in _PASSED:
            return None
        current = node.inputs[0]
    return None


def _block_pairs(own: Mapping[str, ir.Node], nodes: Mapping[str, ir.Node]) -> Iterator[BlockPair]:
    """Yield the blocks whose last node both graphs have, in graph order."""
    last: dict[str, str] = {}
    for name, node in own.items():
        block = block_of(name)
        # What a LayerNorm returns may be folded; what a block returns is not.
        if block and node.op_type != "LayerNormalization":
            last[block] = name
    for block, name in sorted(last.items(), key=lambda item: list(own).index(item[1])):
        if name in nodes and own[name].outputs[0].dtype in (None, ir.DataType.FLOAT):
            yield BlockPair(block, _with_bias(own[name]), _with_bias(nodes[name]))


def _merge_(model: ir.Model, other: ir.Model) -> None:
    """Move the nodes and constants of `other` into `model`; inputs are shared, outputs cleared."""
    inputs = {value.name: value for value in model.graph.inputs}
    model.graph.outputs.clear()
    other.graph.outputs.clear()
    for value in other.graph.inputs:
        if value.name not in inputs:
            raise DataError(f"the INT8 artefact has an input '{value.name}' that FP32 has not.")
        ir.convenience.replace_all_uses_with(value, inputs[value.name])
    for name, value in list(other.graph.initializers.items()):
        del other.graph.initializers[name]
        value.name = PREFIX + name
        model.graph.register_initializer(value)
    nodes = list(other.graph)
    other.graph.remove(nodes)
    for node in nodes:
        node.name = f"{PREFIX}{node.name}"
        for value in node.outputs:
            value.name = f"{PREFIX}{value.name}"
    model.graph.extend(nodes)
