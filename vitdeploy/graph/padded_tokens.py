"""Attention over a number of tokens that kernels divide evenly: empty tokens that no query sees.

They join the tokens in front of the first block and leave behind the last one. Their keys are
masked, so that they get no weight in any softmax, and all else works on each token alone: what the
other tokens give is unchanged. An example are the 197 tokens of 224 pixels (patches of 16, and a
class token): OpenVINO's kernels, INT8 and bf16, are 4 to 7 % faster on 200.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import CompressionError
from vitdeploy.graph.attention import AttentionGraphSite
from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.layout_ops import Shapes
from vitdeploy.graph.surgery import (
    constant_of,
    fresh_name,
    insert_after_,
    int_attribute,
    ints_attribute,
    ints_of,
    new_constant_,
    scalar_of,
    set_constant_,
)

LARGEST_SHARE = 1 / 16
"""Of the tokens; with more of them what they cost is more than what they can save."""
MASKED = -3e4
"""Added to a score, it leaves nothing behind the softmax; FP16 holds it."""

_BATCH = 2
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_QUANTIZES = frozenset({"QuantizeLinear", "DequantizeLinear"})
_OWN_PARAMETERS = _NORMS | _QUANTIZES | {"Clip"}
"""Of their inputs the first alone has tokens."""
_BY_TOKEN = frozenset(
    {
        *_OWN_PARAMETERS,
        *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Reciprocal", "Sqrt", "Exp", "Erf"),
        *("Gelu", "Tanh", "Sigmoid", "Relu", "HardSwish", "Identity", "Cast"),
    }
)
_KEEPS_ZEROS = _QUANTIZES | {"Identity", "Cast"}

_Axes = frozenset[int]
_NONE: _Axes = frozenset()


def pad_tokens_(model: ir.Model, sites: Sequence[AttentionGraphSite], multiple: int) -> None:
    """Pad the tokens of all attention of a graph to a multiple of `multiple`, in place.

    Args:
        model: FP32, or with Q/DQ. Not to be used after an error.
        sites: of the FP32 graph that it was made from, where nodes have the same names.
        multiple: of it the number of tokens shall be.

    Raises:
        CompressionError: there is nothing to gain, or tokens meet in other ways than attention.
    """
    shapes = concrete_shapes(model, _BATCH)
    nodes = {str(node.name): node for node in model.graph}
    found = [shapes.get(str(nodes[str(s.softmax.name)].outputs[0].name)) for s in sites]
    squares = {shape[-2:] for shape in found if shape is not None}
    if not found or None in found or len(squares) > 1 or len(set(next(iter(squares)))) > 1:
        raise CompressionError("there is no one number of tokens that all attention has.")
    tokens = next(iter(squares))[0]
    more = -tokens % multiple
    if not 0 < more <= LARGEST_SHARE * tokens:
        raise CompressionError(f"{tokens} tokens are padded by {more} of them for nothing.")
    walk = _Walk(model.graph, dict(shapes), more)
    walk.start(_first_tokens(nodes, sites[0], shapes, tokens))
    if len(walk.masked) < len(sites):
        raise CompressionError(
            f"the tokens of {len(sites) - len(walk.masked)} of {len(sites)} attentions could not "
            "be followed from those of the first."
        )


def _first_tokens(
    nodes: dict[str, ir.Node], site: AttentionGraphSite, shapes: Shapes, tokens: int
) -> ir.Value:
    """Return what the norm in front of the first attention reads: (batch, tokens, channels)."""
    product = nodes.get(site.query.linear.name)
    value = product.inputs[0] if product is not None else None
    while value is not None and (maker := value.producer()) is not None:
        source = maker.inputs[0]
        if maker.op_type in _NORMS and source is not None and source.producer() is not None:
            shape = shapes.get(str(source.name), ())
            if len(shape) == 3 and shape[1] == tokens:
                return source
        if maker.op_type not in _BY_TOKEN:
            break
        value = source
    raise CompressionError("no norm of (batch, tokens, channels) is in front of the attention.")


class _Walk:
    """Follows the axes of tokens through a graph from a value on, and lengthens them."""

    def __init__(self, graph: ir.Graph, shapes: dict[str, tuple[int, ...]], more: int) -> None:
        self.graph, self.shapes, self.more = graph, shapes, more
        self.axes: dict[ir.Value, _Axes] = {}
        """The axes that end in the empty tokens: all tokens, or all but some at the start."""
        self.before: dict[ir.Value, ir.Shape] = {}
        """Shapes without empty tokens, as they were written."""
        self.zero_beyond: set[ir.Value] = set()
        """Values that are 0 at the empty tokens of their last axis."""
        self.masked: list[ir.Node] = []
        """Each softmax whose empty keys are masked."""
        self.cut: dict[ir.Value, ir.Value] = {}

    def start(self, source: ir.Value) -> None:
        graph = self.graph
        pads = new_constant_(graph, "token_padding", np.array([0, 0, 0, 0, self.more, 0]))
        shape = self.shapes[str(source.name)]
        pad = ir.node("Pad", [source, pads], name="pad_tokens/Pad")
        pad.outputs[0].name = fresh_name(graph, "pad_tokens/Pad_output")
        padded = insert_after_(source, pad)
        self.shapes[str(padded.name)] = shape
        self._label(padded, frozenset({1}))
        for node in list(graph):
            if node is pad or not any(self._of(value) for value in node.inputs):
                continue
            found = self._outputs(node)
            if found is None:
                self._cut_(node)
                continue
            for value in node.outputs:
                self._label(value, found)
        for index, value in enumerate(graph.outputs):
            if self._of(value):
                graph.outputs[index] = self._named_as_output(value)

    def _of(self, value: ir.Value | None) -> _Axes:
        return self.axes.get(value, _NONE) if value is not None else _NONE

    def _shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the shape without empty tokens, at a batch of two."""
        if value is None:
            return None
        array = None if str(value.name) in self.shapes else constant_of(value)
        return self.shapes.get(str(value.name)) if array is None else array.shape

    def _label(self, value: ir.Value, axes: _Axes) -> None:
        if not axes:
            return
        self.axes[value] = axes
        if value.shape is not None:
            old = self.shapes[str(value.name)]
            self.before[value] = value.shape
            sizes = [
                old[i] + self.more if i in axes else size for i, size in enumerate(value.shape)
            ]
            value.shape = ir.Shape(sizes)

    def _outputs(self, node: ir.Node) -> _Axes | None:
        """Return the axes of tokens of a node's outputs, its constants padded; None to stop."""
        if any(self._shape(value) is None for value in (*node.inputs[:1], *node.outputs)):
            return None
        if node.op_type in _BY_TOKEN:
            return self._by_token(node)
        handlers: dict[str, Callable[[ir.Node], _Axes | None]] = {
            "MatMul": self._product,
            "Reshape": self._reshape,
            "Squeeze": self._regrouped,
            "Unsqueeze": self._regrouped,
            "Transpose": self._transpose,
            "Split": self._along_axis,
            "Concat": self._concat,
            "Slice": self._slice,
            "Gather": self._gather,
            "Softmax": self._softmax,
        }
        handler = handlers.get(node.op_type)
        return None if handler is None else handler(node)

    def _by_token(self, node: ir.Node) -> _Axes | None:
        inputs = node.inputs[:1] if node.op_type in _OWN_PARAMETERS else node.inputs
        rank = len(self._shape(node.outputs[0]) or ())
        axes: set[int] = set()
        for value in inputs:
            axes |= {axis + rank - len(self._shape(value) or ()) for axis in self._of(value)}
        if node.op_type in _NORMS and rank - 1 in axes:
            return None
        if node.op_type in _QUANTIZES and scalar_of(node.inputs[1]) is None:
            return None  # a scale for each of some axis: of weights alone, which have no tokens
        fills = []
        for index, value in enumerate(inputs):
            shape = self._shape(value)
            if shape is None:
                return None
            own = {axis - rank + len(shape) for axis in axes} - self._of(value)
            lacking = {axis for axis in own if axis >= 0 and shape[axis] != 1}
            if lacking and constant_of(value) is None:
                return None
            if lacking:
                fills.append((index, lacking))
        for index, lacking in fills:
            self._pad_constant_(node, index, lacking)
        if node.op_type in _KEEPS_ZEROS and node.inputs[0] in self.zero_beyond:
            self.zero_beyond.add(node.outputs[0])
        return frozenset(axes)

    def _pad_constant_(self, node: ir.Node, index: int, axes: set[int]) -> None:
        array = constant_of(node.inputs[index])
        assert array is not None
        widths = [(0, self.more if axis in axes else 0) for axis in range(array.ndim)]
        set_constant_(self.graph, node, index, np.pad(array, widths, mode="edge"))

    def _product(self, node: ir.Node) -> _Axes | None:
        left, right = node.inputs[:2]
        ranks = [len(self._shape(value) or ()) for value in (left, right)]
        first, second = self._of(left), self._of(right)
        if min(ranks) < 2:
            return None
        inner = (ranks[0] - 1 in first, ranks[1] - 2 in second)
        if any(inner) and not (all(inner) and left in self.zero_beyond):
            return None
        rank = max(ranks)
        axes = {axis + rank - ranks[0] for axis in first if axis != ranks[0] - 1}
        axes |= {axis + rank - ranks[1] for axis in second if axis != ranks[1] - 2}
        return frozenset(axes)

    def _regrouped(self, node: ir.Node) -> _Axes | None:
        """Return where the axes are once axes are joined, split, added or dropped beside them."""
        old, new = self._shape(node.inputs[0]), self._shape(node.outputs[0])
        assert old is not None
        assert new is not None
        axes = set()
        for axis in self._of(node.inputs[0]):
            before = np.prod(old[:axis])
            at = [i for i in range(len(new)) if np.prod(new[:i]) == before and new[i] == old[axis]]
            if not at:
                return None
            axes.add(at[0])
        return frozenset(axes)

    def _reshape(self, node: ir.Node) -> _Axes | None:
        axes, target = self._regrouped(node), ints_of(node.inputs[1])
        if axes is None or target is None:
            return None
        wanted = [
            size + self.more if i in axes and size > 0 else size for i, size in enumerate(target)
        ]
        set_constant_(self.graph, node, 1, np.array(wanted, np.int64))
        return axes

    def _transpose(self, node: ir.Node) -> _Axes | None:
        perm, axes = ints_attribute(node, "perm"), self._of(node.inputs[0])
        return None if perm is None else frozenset(perm.index(axis) for axis in axes)

    def _along_axis(self, node: ir.Node) -> _Axes | None:
        axes, shape = self._of(node.inputs[0]), self._shape(node.inputs[0])
        assert shape is not None
        return None if int_attribute(node, "axis", 0) % len(shape) in axes else axes

    def _concat(self, node: ir.Node) -> _Axes | None:
        """Return the axes of inputs that have the same, or where the last alone has the joined one.

        Rotary positions leave tokens at the start alone, and join them with the rest.
        """
        shapes = [self._shape(value) for value in node.inputs]
        axis = int_attribute(node, "axis", 0) % len(shapes[0] or ())
        first, last = self._of(node.inputs[0]), self._of(node.inputs[-1])
        if None in shapes or axis in first:
            return None
        same = {self._of(value) for value in node.inputs[:-1]} == {last - {axis}}
        return last if same else None

    def _slice(self, node: ir.Node) -> _Axes | None:
        """Return the axes that keep their end; a slice that leaves it out has no empty tokens."""
        shape, axes = self._shape(node.inputs[0]), self._of(node.inputs[0])
        assert shape is not None
        bounds = [ints_of(value) for value in node.inputs[1:]]
        if len(bounds) < 3 or any(bound is None for bound in bounds):
            return None
        steps = bounds[3] if len(bounds) > 3 else None
        starts, ends, cut = (bound or [] for bound in bounds[:3])
        left = set(axes)
        for index, axis in enumerate(at % len(shape) for at in cut):
            if axis not in axes:
                continue
            start, end, size = starts[index], ends[index], shape[axis]
            if (steps and steps[index] != 1) or start < 0 or end < 0 or start >= size:
                return None
            if end < size:
                left.remove(axis)
            elif end < size + self.more:
                return None  # its end would have to be moved; exporters write the largest number
        return frozenset(left)

    def _gather(self, node: ir.Node) -> _Axes | None:
        indices, shape = constant_of(node.inputs[1]), self._shape(node.inputs[0])
        axes = self._of(node.inputs[0])
        assert shape is not None
        axis = int_attribute(node, "axis", 0) % len(shape)
        if indices is None or axis in axes:
            return None
        return frozenset(at if at < axis else at + indices.ndim - 1 for at in axes)

    def _softmax(self, node: ir.Node) -> _Axes | None:
        scores = node.inputs[0]
        shape, axes = self._shape(scores), self._of(scores)
        assert scores is not None
        assert shape is not None
        last = len(shape) - 1
        if int_attribute(node, "axis", -1) % len(shape) != last:
            return None
        if last not in axes:
            return axes
        # OpenVINO in bf16 is wrong with a mask of one row of keys for all heads (`key_mask`)
        rows = [1] * (last - 2) + [shape[1] if last == 3 else 1, 1, shape[-1] + self.more]
        if rows[-3] == 1:
            rows[-2] = shape[-2] + (self.more if last - 1 in axes else 0)
        mask = np.zeros(rows, np.float32 if scores.dtype is None else scores.dtype.numpy())
        mask[..., shape[-1] :] = MASKED
        added = new_constant_(self.graph, f"{node.name}_empty_keys", mask)
        add = ir.node("Add", [scores, added], name=f"{node.name}/empty_keys")
        add.outputs[0].name = fresh_name(self.graph, f"{node.name}/empty_keys_output")
        add.outputs[0].type, add.outputs[0].shape = scores.type, scores.shape
        self.graph.insert_before(node, add)
        node.replace_input_with(0, add.outputs[0])
        self.masked.append(node)
        self.zero_beyond.add(node.outputs[0])
        return axes

    def _cut_(self, node: ir.Node) -> None:
        """Let a node read its inputs without the empty tokens."""
        for index, value in enumerate(node.inputs):
            if value is not None and self._of(value):
                node.replace_input_with(index, self._whole(value))

    def _whole(self, value: ir.Value) -> ir.Value:
        if value not in self.cut:
            axes = sorted(self._of(value))
            shape = self.shapes[str(value.name)]
            bounds = ([0] * len(axes), [shape[axis] for axis in axes], axes)
            constants = [
                new_constant_(self.graph, f"{value.name}_{what}", np.asarray(bound, np.int64))
                for what, bound in zip(("first", "end", "axes"), bounds, strict=True)
            ]
            node = ir.node("Slice", [value, *constants], name=f"{value.name}/without_padding")
            output = node.outputs[0]
            output.name = fresh_name(self.graph, f"{value.name}/without_padding_output")
            output.type, output.shape = value.type, self.before.get(value)
            maker = value.producer()
            assert maker is not None
            self.graph.insert_after(maker, node)
            self.cut[value] = output
        return self.cut[value]

    def _named_as_output(self, value: ir.Value) -> ir.Value:
        output, name = self._whole(value), value.name
        value.name = fresh_name(self.graph, f"{name}_padded")
        output.name = name
        return output
