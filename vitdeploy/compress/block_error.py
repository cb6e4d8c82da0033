"""What a fold costs at the output of its block: every candidate computed inside the FP32 graph.

The products that read a folded activation, rounded as a candidate would round them, and the nodes
behind them up to the residual sum stand in the graph once more for each candidate. What enters
them is the FP32 model's own. Which candidates there are is decided in `search`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vitdeploy.compress.calibrate import Batches, ChannelStatistics
from vitdeploy.compress.smoothing import FoldGroup, Reader, Strength
from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.layout_ops import Shapes
from vitdeploy.graph.qdq import ActivationRange, QuantScheme, quantize_weight
from vitdeploy.graph.sites import WeightSite, add_initializer, array_of

_ERROR = "vitdeploy_block_error"
_MOST_BYTES = 128 << 20
"""Of one value inside a block, for one image. SAM ViT-B at 1024 pixels takes 4.8 GiB with its
windows (44 MiB), 5.1 with its MLPs too (48 MiB), and 7.6 with global attention (768 MiB)."""


@dataclass(frozen=True)
class Candidate:
    """One way to fold a group and round its readers."""

    strength: Strength
    ranges: Mapping[str, ActivationRange]
    """By activation name, after the fold."""


@dataclass(frozen=True)
class Rounding:
    """How readers are rounded."""

    scheme: QuantScheme
    statistics: Mapping[str, ChannelStatistics]
    corrects_bias: bool


def collect_block_errors(
    model: ir.Model,
    candidates: Mapping[FoldGroup, Sequence[Candidate]],
    rounding: Rounding,
    batches: Batches,
) -> dict[str, np.ndarray]:
    """Return by group the squared error of each candidate at the block's output, summed.

    Args:
        model: FP32 graph in topological order; not changed.
        candidates: of groups found in this very graph.
        rounding: how readers are rounded.
        batches: a pass over the images.

    Returns:
        By group name float64 (candidates,). Groups whose products are no MatMul, behind which no
        residual sum gathers everything, or whose block is too large to stand there several times,
        are left out.
    """
    from vitdeploy.targets.onnx import runner_from_model

    observed, copies = _copied(model)
    observed.graph.outputs.clear()
    names: dict[str, list[str]] = {}
    numbers = count()
    shapes = concrete_shapes(model)
    for group, listed in candidates.items():
        block = block_behind(model.graph, group.readers)
        if block is None or any(reader.site.kind != "MatMul" for reader in group.readers):
            continue
        if _largest_bytes(block, shapes) > _MOST_BYTES:
            continue
        end = copies[block[-1].outputs[0]]
        last = end.producer()
        assert last is not None
        names[group.name] = []
        for candidate in listed:
            trial = _Trial(observed, copies, rounding, numbers)
            trial.run(block, group, candidate)
            name = f"{_ERROR}_{group.name}_{len(names[group.name])}"
            names[group.name].append(trial.publish_error(end, name))
            observed.graph.insert_after(last, trial.nodes)
    totals = {name: np.zeros(len(outputs)) for name, outputs in names.items()}
    if not names:
        return totals
    with runner_from_model(observed, in_listed_order=True) as runner:
        for feeds in batches():
            results = runner(feeds)
            for name, outputs in names.items():
                totals[name] += [float(results[output]) for output in outputs]
    return totals


def block_behind(graph: ir.Graph, readers: Sequence[Reader]) -> list[ir.Node] | None:
    """Return the nodes behind products up to the residual sum that gathers them all, in order.

    That is the first addition of something else through which every path from the products to
    the outputs leads; None where there is none.
    """
    places = {node: number for number, node in enumerate(graph)}
    outputs = set(graph.outputs)
    first = {reader.site.node for reader in readers}
    behind: dict[ir.Node, None] = {}
    reach = 0
    for node, place in places.items():
        comes_behind = [v is not None and v.producer() in behind for v in node.inputs]
        if node not in first and not any(comes_behind):
            continue
        is_gathered = reach <= place and first <= {*behind, node}
        if behind and is_gathered and node.op_type == "Add" and _adds_other(node, comes_behind):
            return [*behind, node]
        behind[node] = None
        for value in node.outputs:
            if value in outputs:
                return None
            reach = max([reach, *(places[use.node] for use in value.uses())])
    return None


def _largest_bytes(block: Sequence[ir.Node], shapes: Shapes) -> int:
    """Return the size of the largest value inside a block for one image, in float32."""
    names = (str(value.name) for node in block for value in node.outputs)
    return max((4 * math.prod(shapes[name]) for name in names if name in shapes), default=0)


def _adds_other(node: ir.Node, comes_behind: Sequence[bool]) -> bool:
    return any(
        value is not None and value.const_value is None and not behind
        for value, behind in zip(node.inputs, comes_behind, strict=True)
    )


def _copied(model: ir.Model) -> tuple[ir.Model, dict[ir.Value, ir.Value]]:
    """Return a copy of the graph and the copy of each of its values."""
    copy = model.clone()
    copies = dict(zip(model.graph.inputs, copy.graph.inputs, strict=True))
    copies |= {v: copy.graph.initializers[k] for k, v in model.graph.initializers.items()}
    for old, new in zip(model.graph, copy.graph, strict=True):
        copies |= dict(zip(old.outputs, new.outputs, strict=True))
    return copy, copies


class _Trial:
    """The nodes of one candidate, in order."""

    def __init__(
        self,
        model: ir.Model,
        copies: Mapping[ir.Value, ir.Value],
        rounding: Rounding,
        numbers: Iterator[int],
    ) -> None:
        self.nodes: list[ir.Node] = []
        self._numbers = numbers
        self._model = model
        self._values = dict(copies)
        self._rounding = rounding
        self._rounded: dict[str, ir.Value] = {}

    def run(self, block: Sequence[ir.Node], group: FoldGroup, candidate: Candidate) -> None:
        """Compute the block once more."""
        readers = {reader.site.node: reader for reader in group.readers}
        for node in block:
            if node in readers:
                self._values[node.outputs[0]] = self._product(readers[node], candidate)
                continue
            inputs = [None if v is None else self._values[v] for v in node.inputs]
            copy = self._add(
                node.op_type, inputs, dict(node.attributes), len(node.outputs), node.domain
            )
            self._values |= dict(zip(node.outputs, copy.outputs, strict=True))
        self._end = self._values[block[-1].outputs[0]]

    def publish_error(self, end: ir.Value, name: str) -> str:
        """Add the squared difference from FP32's block output to the graph's outputs."""
        difference = self._add("Sub", [self._end, end]).outputs[0]
        total = self._add(
            "ReduceSumSquare", [difference], {"keepdims": ir.AttrInt64("keepdims", 0)}
        ).outputs[0]
        total.name, total.shape = name, ir.Shape([])
        total.type = ir.TensorType(ir.DataType.FLOAT)
        self._model.graph.outputs.append(total)
        return name

    def _product(self, reader: Reader, candidate: Candidate) -> ir.Value:
        site, strength = reader.site, candidate.strength
        name = str(site.activation.name)
        scale, shift = strength.scale[reader.channels], strength.shift[reader.channels]
        if name not in self._rounded:
            self._rounded[name] = self._activation(site, scale, shift, candidate.ranges[name])
        weight, constant = self._weight(site, scale, shift)
        product = self._add("MatMul", [self._rounded[name], weight]).outputs[0]
        return self._add("Add", [product, self._constant(constant)]).outputs[0]

    def _activation(
        self, site: WeightSite, scale: np.ndarray, shift: np.ndarray, interval: ActivationRange
    ) -> ir.Value:
        value = self._values[site.activation]
        for operator, vector, neutral in (("Sub", shift, 0.0), ("Div", scale, 1.0)):
            if np.any(vector != neutral):
                value = self._add(operator, [value, self._constant(vector)]).outputs[0]
        step, zero = (np.asarray(p) for p in interval.parameters(self._rounding.scheme))
        parameters = [self._constant(step), self._constant(zero, zero.dtype)]
        codes = self._add("QuantizeLinear", [value, *parameters]).outputs[0]
        return self._add("DequantizeLinear", [codes, *parameters]).outputs[0]

    def _weight(
        self, site: WeightSite, scale: np.ndarray, shift: np.ndarray
    ) -> tuple[ir.Value, np.ndarray]:
        """Return the folded weight as rounded, and (out,) what its product lacks then."""
        weight = array_of(site.weight).astype(np.float64)
        folded = (weight * scale[:, None]).astype(np.float32)
        rounded = quantize_weight(folded, site.output_axis, self._rounding.scheme.weight_bits)
        missing = shift @ weight
        if self._rounding.corrects_bias:
            own = self._rounding.statistics[str(site.activation.name)]
            lost = folded - rounded.codes * rounded.scales.astype(np.float64)
            missing = missing + own.folded(scale, shift).mean @ lost
        parameters = [
            self._constant(rounded.codes, np.int8),
            self._constant(rounded.scales),
        ]
        axis = {"axis": ir.AttrInt64("axis", site.output_axis)}
        return self._add("DequantizeLinear", parameters, axis).outputs[0], missing

    def _constant(self, array: np.ndarray, dtype: npt.DTypeLike = np.float32) -> ir.Value:
        name = f"{_ERROR}_constant_{next(self._numbers)}"
        return add_initializer(self._model, name, np.asarray(array, dtype))

    def _add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, ir.Attr] | None = None,
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Node:
        node = ir.Node(
            domain, operator, inputs, list((attributes or {}).values()), num_outputs=outputs
        )
        self.nodes.append(node)
        return node
