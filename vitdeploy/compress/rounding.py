"""Rounding weights by what they do to the output: GPTQ (2210.17323) from streamed second moments.

Rounding to nearest treats every weight alike. With the second moments X^T X of the input, the
rounding error of one input channel is made up for by the channels still to come, so that the error
of X W is least. Bits and groups are arguments. Which products are quantised, and with which ranges
for activations, is not decided here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches, limited
from vitdeploy.graph.qdq import QuantizedWeight
from vitdeploy.graph.sites import WeightSite, add_initializer, array_of
from vitdeploy.graph.surgery import ints_attribute

DAMPING = 0.01
"""Added to the diagonal, in units of its mean: for directions that calibration hardly shows."""
ROWS_PER_CHANNEL = 4
"""Tokens read for each input channel, where there are so many images."""
LEAST_ROWS_PER_CHANNEL = 1
"""With fewer tokens than channels the moments say too little; the product is rounded to nearest."""
MOMENT_IMAGES = 64
"""Calibration images read at most."""
_PASS_BYTES = 1 << 28
"""Moments gathered in one pass; wider models take several."""
_BLOCK = 128
"""Columns rounded before the rest of the matrix is brought up to date."""


@dataclass(frozen=True)
class Grid:
    """The codes of a weight: symmetric, a scale per output channel and group of inputs."""

    bits: int = 8
    group_size: int | None = None
    """Input channels that share a scale; all where None."""

    @property
    def largest_code(self) -> int:
        """127 for 8 bits; the codes are symmetric."""
        return int(2 ** (self.bits - 1) - 1)


@dataclass(frozen=True)
class Moments:
    """Second moments of one activation."""

    product: np.ndarray
    """(C, C) float32: X^T X, summed over tokens."""
    rows: int
    """Tokens or pixels summed over."""


def round_weights(
    model: ir.Model, sites: Sequence[WeightSite], batches: Batches, grid: Grid, budget: Budget
) -> dict[str, QuantizedWeight]:
    """Return by site name the codes GPTQ finds, for the sites it can and has time to do.

    Args:
        model: FP32 graph with the folds applied; not changed.
        sites: products of this graph; of convolutions only those of single pixels are rounded.
        batches: a pass over the calibration images; at most 64 images are read.
        grid: of the codes, one scale per output channel.
        budget: ends the work; what it leaves out is noted there.
    """
    rounded: dict[str, QuantizedWeight] = {}
    suited = [site for site in sites if is_suited(site)]
    waiting = len(suited)
    for group in _groups(suited):
        if not budget.affords(2 * budget.image_seconds, f"GPTQ rounding of {waiting} products"):
            break
        waiting -= len(group)
        moments = collect_moments(model, group, limited(batches, MOMENT_IMAGES, budget.until(1.0)))
        for site in group:
            own = moments[str(site.activation.name)]
            if own.rows < LEAST_ROWS_PER_CHANNEL * len(own.product):
                continue
            codes, scales = gptq(_rows_of(site), own.product, grid)
            shape = site.weight.const_value.shape.numpy()
            rounded[site.name] = QuantizedWeight(_laid_out(codes, site, shape), scales[:, 0])
    return rounded


def is_suited(site: WeightSite) -> bool:
    """Return whether the product is one matrix of its input's channels."""
    if site.kind != "Conv":
        return True
    window = site.weight.const_value.shape.numpy()[2:]
    strides = ints_attribute(site.node, "strides") or [1]
    return site.groups == 1 and set(window) == {1} and set(strides) == {1}


def collect_moments(
    model: ir.Model, sites: Sequence[WeightSite], batches: Batches
) -> dict[str, Moments]:
    """Return the second moments of each site's input by activation name.

    Computed inside the graph, batch by batch, so that no activation is kept.

    Args:
        model: FP32 graph; not changed.
        sites: of this graph, each `is_suited`.
        batches: a pass over the images; it ends once there are enough tokens for all.
    """
    from vitdeploy.targets.onnx import runner_from_model

    observed = model.clone()
    width = {str(s.activation.name): _inputs_of(s) for s in sites}
    outputs = _add_products_(observed, sites)
    totals: dict[str, np.ndarray] = {}
    rows = dict.fromkeys(width, 0)
    with runner_from_model(observed) as runner:
        for feeds in batches():
            results = runner(feeds)
            for name, (product, count) in outputs.items():
                own = results[product]
                totals[name] = totals[name] + own if name in totals else own
                rows[name] += int(results[count]) // width[name]
            if all(rows[name] >= ROWS_PER_CHANNEL * width[name] for name in rows):
                break
    return {name: Moments(total, rows[name]) for name, total in totals.items()}


def gptq(matrix: np.ndarray, moments: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return codes int8 (out, in) and scales float32 (out, groups) of least output error.

    Args:
        matrix: (out, in) weights.
        moments: (in, in) sum over tokens of x x^T.
        grid: bits and groups; the scales are those of rounding to nearest.

    Raises:
        ValueError: the group size does not divide the input channels.
    """
    count = matrix.shape[1]
    size = grid.group_size or count
    if count % size:
        raise ValueError(f"groups of {size} do not divide {count} input channels")
    scales = _scales(matrix, size, grid)
    # The channels of most power first: the others can still make up for their errors.
    order = np.argsort(-np.diag(moments), kind="stable")
    factor = _inverse_factor(moments[np.ix_(order, order)].astype(np.float64))
    weights = matrix[:, order].astype(np.float64)
    steps = scales.astype(np.float64)[:, order // size]
    codes = np.empty(weights.shape, np.int8)
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = np.empty((len(weights), end - start))
        for column in range(start, end):
            exact = weights[:, column] / steps[:, column]
            code = np.clip(np.rint(exact), -grid.largest_code, grid.largest_code)
            codes[:, order[column]] = code
            error = (weights[:, column] - code * steps[:, column]) / factor[column, column]
            weights[:, column:end] -= np.outer(error, factor[column, column:end])
            errors[:, column - start] = error
        weights[:, end:] -= errors @ factor[start:end, end:]
    return codes, scales


def _scales(matrix: np.ndarray, size: int, grid: Grid) -> np.ndarray:
    largest = np.abs(matrix.reshape(len(matrix), -1, size)).max(axis=2)
    scales = (largest / grid.largest_code).astype(np.float32)
    # As in rounding to nearest: a denormal scale would overflow the division.
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1.0), scales)


def _inverse_factor(moments: np.ndarray) -> np.ndarray:
    """Return the upper triangular U with U^T U = (moments + damping)^-1."""
    diagonal = np.einsum("ii->i", moments)
    mean = float(diagonal.mean())
    diagonal += DAMPING * mean if mean > 0 else 1.0
    factor: np.ndarray = np.linalg.cholesky(np.linalg.inv(moments)).T
    return factor


def _groups(sites: Sequence[WeightSite]) -> Iterator[list[WeightSite]]:
    """Yield runs of sites whose moments fit one pass; sites that read one value stay together."""
    by_value: dict[str, list[WeightSite]] = {}
    for site in sites:
        by_value.setdefault(str(site.activation.name), []).append(site)
    group: list[WeightSite] = []
    size = 0
    for readers in by_value.values():
        own = 4 * _inputs_of(readers[0]) ** 2
        if group and size + own > _PASS_BYTES:
            yield group
            group, size = [], 0
        group.extend(readers)
        size += own
    if group:
        yield group


def _add_products_(model: ir.Model, sites: Sequence[WeightSite]) -> dict[str, tuple[str, str]]:
    """Make X^T X and the size of X of every input the only outputs; return their names."""
    values = {str(value.name): value for value in model.graph.inputs}
    values.update({str(out.name): out for node in model.graph for out in node.outputs})
    model.graph.outputs.clear()
    found: dict[str, tuple[str, str]] = {}
    for site in sites:
        name = str(site.activation.name)
        if name in found:
            continue
        data = values[name]
        if site.kind == "Conv":
            last = ir.node("Transpose", [data], attributes={"perm": [0, 2, 3, 1]})
            model.graph.append(last)
            data = last.outputs[0]
        shape = add_initializer(model, "moment_shape", np.asarray([-1, _inputs_of(site)]))
        rows = ir.node("Reshape", [data, shape])
        turned = ir.node("Transpose", [rows.outputs[0]], attributes={"perm": [1, 0]})
        product = ir.node("MatMul", [turned.outputs[0], rows.outputs[0]])
        size = ir.node("Size", [data])
        model.graph.extend([rows, turned, product, size])
        found[name] = (f"{name}/moments", f"{name}/moment_size")
        types = (ir.DataType.FLOAT, ir.DataType.INT64)
        for node, output, dtype in zip((product, size), found[name], types, strict=True):
            node.outputs[0].name, node.outputs[0].dtype = output, dtype
            model.graph.outputs.append(node.outputs[0])
    return found


def _inputs_of(site: WeightSite) -> int:
    return int(site.weight.const_value.shape[site.input_axis])


def _rows_of(site: WeightSite) -> np.ndarray:
    """Return the weight as (out, in)."""
    weight = array_of(site.weight)
    if site.kind == "Conv":
        return weight[:, :, 0, 0]
    return weight if site.output_axis == 0 else weight.T


def _laid_out(codes: np.ndarray, site: WeightSite, shape: Sequence[int]) -> np.ndarray:
    """Return codes (out, in) in the weight's own layout."""
    turned = codes if site.output_axis == 0 else codes.T
    return np.ascontiguousarray(turned.reshape(tuple(shape)))
