"""F2: rotate a whole residual stream so that no channel stands out, and LayerNorm stays LayerNorm.

For an orthogonal Q with Q 1 = 1 the mean and the variance of a row are those of the rotated row,
so LN(x Q) = LN(x) Q where gamma is 1 and beta 0. So: move gamma and beta of each norm that reads
the stream into its readers W (W diag(gamma), b + W beta), turn the readers (W Q) and turn all that
writes the stream (layers Q^T W, Q^T b; position embedding, class token and registers t Q).

This is QuaRot's idea (2404.00456) for LayerNorm: RMSNorm allows any orthogonal Q, LayerNorm needs
the mean kept. Q = P diag(1, R) P with the reflection P that takes the first axis to 1/sqrt(D) and
R a seeded random rotation of the remaining D - 1 dimensions.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.folds.layernorm_scale import norm_parameters, set_norm_
from vitdeploy.graph.folds.stream import NormReader, Stream, Table, find_streams, tiled
from vitdeploy.graph.linear import rotate_inputs_, rotate_outputs_
from vitdeploy.graph.readership import absorb_
from vitdeploy.graph.surgery import (
    Float64,
    constant_of,
    fresh_name,
    insert_after_,
    new_constant_,
    set_constant_,
)

MAX_INSERTS = 2
"""MatMuls that may be inserted per stream (one where it begins, one where it ends)."""

_SMALLEST_GAMMA = 1e-3
"""Below this share of the largest gamma, dividing beta by gamma would blow the activation up."""


@dataclass(frozen=True, eq=False)
class Site:
    """A residual stream that may be rotated."""

    stream: Stream

    @property
    def name(self) -> str:
        """The name of the first norm that reads the stream."""
        return self.stream.name

    @property
    def channels(self) -> int:
        """Width of the stream."""
        return self.stream.channels


def find(model: ir.Model) -> list[Site]:
    """Return the residual streams of `model` that a LayerNormalization reads."""
    return [Site(stream) for stream in find_streams(model) if stream.norms]


def applies(site: Site, *, allow_inserts: bool = False) -> str | None:
    """Return why the stream cannot be rotated, or None where it can.

    Args:
        site: A site of `find`.
        allow_inserts: Let a MatMul be inserted behind a norm that writes the stream and before a
            norm whose readers cannot be turned, at most `MAX_INSERTS` in all. An output that is
            the stream itself is always refused.
    """
    stream = site.stream
    if stream.obstacles:
        return stream.obstacles[0]
    if stream.outputs:
        return f"the graph output {stream.outputs[0].name} is the stream itself"
    if len(stream.norm_writers) > 1:
        names = ", ".join(str(node.name) for node in stream.norm_writers[:2])
        return f"it is a post-norm network: {names} and others write the stream"
    fixed = [(reader, reason) for reader in stream.norms if (reason := _fixed(reader, stream))]
    if len(fixed) == len(stream.norms):
        return f"no norm that reads it can be turned: behind {fixed[0][0].norm.name} {fixed[0][1]}"
    count = len(stream.norm_writers) + len(fixed)
    if count and not (allow_inserts and count <= MAX_INSERTS):
        if stream.norm_writers:
            return f"the norm {stream.norm_writers[0].name} writes the stream"
        return f"behind {fixed[0][0].norm.name} {fixed[0][1]}"
    if count and len(stream.norms) - len(fixed) < 2:
        return "a MatMul would be inserted for the sake of a single norm"
    return None


def _fixed(reader: NormReader, stream: Stream) -> str | None:
    """Return why what reads a norm cannot be turned, or None where it can."""
    found = reader.readers
    if found.reason is not None:
        return found.reason
    width = stream.channels * reader.blocks
    for linear, channels in found.layers:
        if not tiled(channels, width):
            return f"{linear.name} reads the channels in another order"
    if found.shift_reason is not None:
        gamma, beta = norm_parameters(reader.norm)
        smallest = float(np.abs(gamma).min())
        if np.any(beta) and smallest < _SMALLEST_GAMMA * float(np.abs(gamma).max()):
            return f"{found.shift_reason}, and gamma is too close to zero to keep beta"
    return None


def mean_preserving_rotation(channels: int, seed: int) -> Float64:
    """Return a random orthogonal Q (channels, channels) float64 with Q 1 = 1 and 1^T Q = 1^T."""
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((channels - 1, channels - 1))
    turn, upper = np.linalg.qr(normal)
    turn *= np.sign(np.diag(upper))  # so that the distribution is uniform (Haar)
    inner = np.zeros((channels, channels))
    inner[0, 0] = 1.0
    inner[1:, 1:] = turn
    axis = -np.full(channels, 1.0 / np.sqrt(channels))
    axis[0] += 1.0
    reflection = np.eye(channels) - 2.0 * np.outer(axis, axis) / (axis @ axis)
    result: Float64 = reflection @ inner @ reflection
    return result


def apply_(model: ir.Model, site: Site, rotation: Float64, *, allow_inserts: bool = False) -> None:
    """Rotate the stream of `site`: each row x of it becomes x @ rotation.

    Args:
        model: The model `site` is from.
        site: A site of `find`.
        rotation: (C, C) float64, orthogonal with rows that sum to one, as
            `mean_preserving_rotation` makes it.
        allow_inserts: As in `applies`.

    Raises:
        ValueError: The fold does not apply, or `rotation` does not keep norm and mean.
    """
    reason = applies(site, allow_inserts=allow_inserts)
    if reason is not None:
        raise ValueError(f"cannot rotate the stream of {site.name}: {reason}")
    turn = _checked(rotation, site.channels)
    stream, graph = site.stream, model.graph
    for linear in stream.writers:
        rotate_outputs_(graph, linear, turn)
    for table in stream.tables:
        _rotate_table_(graph, table, turn)
    for linear, blocks in stream.layers:
        rotate_inputs_(graph, linear, _blocks(turn, blocks))
    for reader in stream.norms:
        whole = _blocks(turn, reader.blocks)
        if _fixed(reader, stream) is None:
            _turn_readers_(graph, reader, whole)
        else:
            _insert_before_(graph, reader.norm, whole.T)
    for norm in stream.norm_writers:
        _insert_behind_(graph, norm, turn)


def _checked(rotation: Float64, channels: int) -> Float64:
    turn = np.asarray(rotation, np.float64)
    if turn.shape != (channels, channels):
        raise ValueError(f"the rotation must be of shape {(channels, channels)}, got {turn.shape}")
    # 1e-10: a product of reflections of a few thousand channels stays below 1e-12 in float64.
    if np.abs(turn @ turn.T - np.eye(channels)).max() > 1e-10:
        raise ValueError("the rotation is not orthogonal; make it with mean_preserving_rotation")
    if np.abs(turn.sum(axis=1) - 1.0).max() > 1e-10:
        raise ValueError(
            "the rotation does not keep the mean (its rows must sum to one), so LayerNorm would "
            "change; make it with mean_preserving_rotation"
        )
    return turn


def _blocks(turn: Float64, count: int) -> Float64:
    """Return the rotation of `count` runs of channels side by side."""
    whole: Float64 = np.kron(np.eye(count), turn).astype(np.float64)
    return whole


def _rotate_table_(graph: ir.Graph, table: Table, turn: Float64) -> None:
    array = np.asarray(constant_of(table.node.inputs[table.index]), np.float64)
    rotated = np.moveaxis(np.moveaxis(array, table.axis, -1) @ turn, -1, table.axis)
    set_constant_(graph, table.node, table.index, rotated)


def _turn_readers_(graph: ir.Graph, reader: NormReader, turn: Float64) -> None:
    """Move gamma and beta of the norm into its readers and turn those."""
    gamma, beta = norm_parameters(reader.norm)
    ones = np.ones_like(gamma)
    if reader.readers.shift_reason is None:
        absorb_(graph, reader.readers, gamma, beta)
        set_norm_(graph, reader.norm, ones, np.zeros_like(beta))
    elif np.any(beta):
        # Readers that also see zero padding cannot take beta: it stays, in units of gamma.
        absorb_(graph, reader.readers, gamma, None)
        set_norm_(graph, reader.norm, ones, (beta / gamma) @ turn)
    else:
        absorb_(graph, reader.readers, gamma, None)
        set_norm_(graph, reader.norm, ones, beta)
    for linear, channels in reader.readers.layers:
        rotate_inputs_(graph, linear, _blocks(turn, channels.size // len(turn)))


def _insert_before_(graph: ir.Graph, norm: ir.Node, turn: Float64) -> None:
    data = norm.inputs[0]
    node = _matmul(graph, data, turn, f"{norm.name}/rotate_back")
    graph.insert_before(norm, node)
    node.outputs[0].shape, node.outputs[0].type = data.shape, data.type
    norm.replace_input_with(0, node.outputs[0])


def _insert_behind_(graph: ir.Graph, norm: ir.Node, turn: Float64) -> None:
    insert_after_(norm.outputs[0], _matmul(graph, norm.outputs[0], turn, f"{norm.name}/rotate"))


def _matmul(graph: ir.Graph, data: ir.Value, turn: Float64, name: str) -> ir.Node:
    dtype = data.dtype.numpy() if data.dtype is not None else np.dtype(np.float32)
    weight = new_constant_(graph, f"{name}.weight", turn.astype(dtype))
    node = ir.node("MatMul", [data, weight], name=name)
    node.outputs[0].name = fresh_name(graph, f"{name}_output")
    return node
