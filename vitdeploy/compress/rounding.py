"""Rounding weights by what they do to the output: GPTQ (2210.17323) from streamed second moments.

Rounding to nearest treats every weight alike. With the second moments X^T X of the input, the
rounding error of one input channel is made up for by the channels still to come, so that the error
of X W is least. Bits and groups are arguments. Which products are quantised, and with which ranges
for activations, is not decided here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.budget import Budget
from vitdeploy.compress.calibrate import Batches, limited
from vitdeploy.graph.observers import bring_observers_forward_
from vitdeploy.graph.qdq import QuantizedWeight
from vitdeploy.graph.sites import WeightSite, add_initializer, array_of
from vitdeploy.graph.surgery import ints_attribute

DAMPING = 0.01
"""Added to the diagonal, in units of its mean: for directions that calibration hardly shows."""
ROWS_PER_CHANNEL = 16
"""Tokens read for each input channel, where there are so many images."""
LEAST_ROWS_PER_CHANNEL = 1
"""With fewer tokens than channels the moments say too little; the product is rounded to nearest."""
MOMENT_IMAGES = 64
"""Calibration images read at most."""
_PASS_BYTES = 1 << 28
"""Moments gathered in one pass; wider models take several."""
_PASS_COST = 2.0
"""What an image costs, in passes of the FP32 graph."""
_FIRST_GUESS = 1e-10
"""Seconds for a multiply-accumulate, until one product has been rounded."""
_CALL_OPERATIONS = 1e6
"""What the calls for one channel take, in multiply-accumulates."""
_FEW_ROWS = 16
"""Channels rounded one by one, each bringing the next up to date; above that, halves in turn."""


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
    total: np.ndarray
    """(C,) float32: X summed over tokens."""


@dataclass(frozen=True)
class Steps:
    """The real numbers that codes stand for: (code - zero) * scale, by output and group."""

    scales: np.ndarray
    """(out, groups) float32, positive."""
    lowest: int
    highest: int
    """Least and largest code."""
    zeros: np.ndarray | None = None
    """(out, groups) codes that stand for 0; none where 0 does."""


@dataclass(frozen=True)
class ErrorSpread:
    """How the error of one input channel is made up for by those still to come."""

    order: np.ndarray
    """(in,) int: the channels in the order of rounding."""
    factor: np.ndarray
    """(in, in) float64 upper triangular U with U^T U = (moments + damping)^-1, in that order."""


def round_weights(
    model: ir.Model,
    sites: Sequence[WeightSite],
    batches: Batches,
    grid: Grid,
    budget: Budget,
    tokens: Mapping[str, float],
) -> dict[str, QuantizedWeight]:
    """Return by site name the codes GPTQ finds, for the sites it can and has time to do.

    Args:
        model: FP32 graph with the folds applied; not changed.
        sites: products of this graph; of convolutions only those of single pixels are rounded.
        batches: a pass over the calibration images; at most 64 images are read.
        grid: of the codes, one scale per output channel.
        budget: ends the work; what it leaves out is noted there. The codes found are the same
            whatever it is, so that a run with pinned choices finds them again.
        tokens: by site name, rows of its input an image.
    """
    rounded: dict[str, QuantizedWeight] = {}
    waiting = [site for site in sites if is_suited(site)]
    seconds_per_operation = _FIRST_GUESS

    def affords(passes: float, operations: float, more: float = 0.0) -> bool:
        seconds = passes * budget.image_seconds + operations * seconds_per_operation
        return budget.affords(seconds + more, f"GPTQ rounding of {len(waiting)} products")

    for group in list(passes_of(waiting)):
        images = max(_images_needed(site, tokens[site.name]) for site in group)
        if not affords(_PASS_COST * images, _operations(group[0]), budget.build_seconds):
            break
        moments = collect_moments(model, group, limited(batches, MOMENT_IMAGES))
        for name, readers in _by_activation(group).items():
            own = moments.pop(name)
            if own.rows < LEAST_ROWS_PER_CHANNEL * len(own.product):
                waiting = [site for site in waiting if site not in readers]
                continue
            operations = sum(_operations(site) for site in readers)
            if not affords(0, operations):
                return rounded
            start = budget.spent
            spread = error_spread(own.product)
            for site in readers:
                codes, scales = gptq(rows_of(site), spread, grid)
                shape = site.weight.const_value.shape.numpy()
                rounded[site.name] = QuantizedWeight(_laid_out(codes, site, shape), scales[:, 0])
            seconds_per_operation = (budget.spent - start) / operations
            waiting = [site for site in waiting if site not in readers]
    return rounded


def is_suited(site: WeightSite) -> bool:
    """Return whether the product is one matrix of its input's channels."""
    if site.kind != "Conv":
        return True
    window = site.weight.const_value.shape.numpy()[2:]
    strides = ints_attribute(site.node, "strides") or [1]
    return site.groups == 1 and set(window) == {1} and set(strides) == {1}


def collect_moments(
    model: ir.Model,
    sites: Sequence[WeightSite],
    batches: Batches,
    rows_per_channel: float = ROWS_PER_CHANNEL,
) -> dict[str, Moments]:
    """Return the second moments of each site's input by activation name.

    Computed inside the graph, batch by batch, so that no activation is kept.

    Args:
        model: FP32 graph; not changed.
        sites: of this graph, each `is_suited`.
        batches: a pass over the images; it ends once there are enough tokens for all.
        rows_per_channel: how many are enough.
    """
    from vitdeploy.targets.onnx import runner_from_model

    observed = model.clone()
    width = {str(s.activation.name): _inputs_of(s) for s in sites}
    outputs = _add_products_(observed, sites)
    products: dict[str, np.ndarray] = {}
    totals: dict[str, np.ndarray] = {}
    rows = dict.fromkeys(width, 0)
    bring_observers_forward_(observed.graph, len(model.graph))
    with runner_from_model(observed, in_listed_order=True) as runner:
        for feeds in batches():
            results = runner(feeds)
            for name, (product, total, count) in outputs.items():
                if rows[name] >= rows_per_channel * width[name]:
                    continue  # the moments do not depend on what else is asked for
                for sums, own in ((products, results[product]), (totals, results[total])):
                    if name in sums:
                        sums[name] += own
                    else:
                        sums[name] = own
                rows[name] += int(results[count]) // width[name]
            if all(rows[name] >= rows_per_channel * width[name] for name in rows):
                break
    return {name: Moments(product, rows[name], totals[name]) for name, product in products.items()}


def gptq(
    matrix: np.ndarray, moments: "np.ndarray | ErrorSpread", grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes int8 (out, in) and scales float32 (out, groups) of least output error.

    Args:
        matrix: (out, in) weights.
        moments: (in, in) sum over tokens of x x^T, or what was made of it for another matrix.
        grid: bits and groups; the scales are those of rounding to nearest.

    Raises:
        ValueError: the group size does not divide the input channels.
    """
    count = matrix.shape[1]
    size = grid.group_size or count
    if count % size:
        raise ValueError(f"groups of {size} do not divide {count} input channels")
    scales = _scales(matrix, size, grid)
    spread = moments if isinstance(moments, ErrorSpread) else error_spread(moments)
    steps = Steps(scales, -grid.largest_code, grid.largest_code)
    return compensated_codes(matrix, spread, steps), scales


def compensated_codes(matrix: np.ndarray, spread: ErrorSpread, steps: Steps) -> np.ndarray:
    """Return codes int8 (out, in) of given steps whose errors make up for one another.

    Args:
        matrix: (out, in) weights.
        spread: of the second moments of the input.
        steps: of groups that divide the input channels.
    """
    order, factor = spread.order, spread.factor
    groups = order // (matrix.shape[1] // steps.scales.shape[1])
    # A row for each input channel, in the order of rounding: what one step touches lies together.
    rows = matrix.T[order].astype(np.float64)
    scales = steps.scales.T.astype(np.float64)
    zeros = np.zeros(scales.shape) if steps.zeros is None else steps.zeros.T
    codes = np.empty(rows.shape, np.int8)

    def choose_(start: int, end: int) -> None:
        """Choose the codes of some rows, and leave their errors in the rows' place."""
        if end - start > _FEW_ROWS:
            middle = (start + end) // 2
            choose_(start, middle)
            rows[middle:end] -= factor[start:middle, middle:end].T @ rows[start:middle]
            choose_(middle, end)
            return
        for row in range(start, end):
            scale, zero = scales[groups[row]], zeros[groups[row]]
            code = np.clip(np.rint(rows[row] / scale) + zero, steps.lowest, steps.highest)
            codes[order[row]] = code
            rows[row] = (rows[row] - (code - zero) * scale) / factor[row, row]
            rows[row + 1 : end] -= np.outer(factor[row, row + 1 : end], rows[row])

    choose_(0, len(rows))
    return np.ascontiguousarray(codes.T)


def _scales(matrix: np.ndarray, size: int, grid: Grid) -> np.ndarray:
    largest = np.abs(matrix.reshape(len(matrix), -1, size)).max(axis=2)
    scales = (largest / grid.largest_code).astype(np.float32)
    # As in rounding to nearest: a denormal scale would overflow the division.
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1.0), scales)


def error_spread(moments: np.ndarray) -> ErrorSpread:
    """Return how errors spread where the input has the second moments (in, in)."""
    from scipy.linalg import cholesky, lapack

    # The channels of most power first: the others can still make up for their errors.
    order = np.argsort(-np.diag(moments), kind="stable")
    # From the last channel to the first: the factor of the reverse is the inverse's, turned round.
    reverse = order[::-1]
    turned = moments[np.ix_(reverse, reverse)].astype(np.float64)
    diagonal = np.einsum("ii->i", turned)
    mean = float(diagonal.mean())
    diagonal += DAMPING * mean if mean > 0 else 1.0
    lower = cholesky(turned.T, lower=False, overwrite_a=True, check_finite=False).T
    inverse = lapack.dtrtri(lower.T, lower=0, overwrite_c=1)[0].T
    return ErrorSpread(order, np.ascontiguousarray(inverse[::-1, ::-1]))


def _by_activation(sites: Sequence[WeightSite]) -> dict[str, list[WeightSite]]:
    found: dict[str, list[WeightSite]] = {}
    for site in sites:
        found.setdefault(str(site.activation.name), []).append(site)
    return found


def _images_needed(site: WeightSite, tokens: float) -> float:
    return min(ROWS_PER_CHANNEL * _inputs_of(site) / tokens + 1, MOMENT_IMAGES)


def _operations(site: WeightSite) -> float:
    """Return about how many multiply-accumulates rounding takes: factor, updates, calls."""
    inputs = float(_inputs_of(site))
    outputs = site.weight.const_value.shape[site.output_axis]
    return inputs**3 + inputs**2 * float(outputs) + _CALL_OPERATIONS * inputs


def passes_of(
    sites: Sequence[WeightSite], pass_bytes: int = _PASS_BYTES
) -> Iterator[list[WeightSite]]:
    """Yield runs of sites whose moments fit one pass; sites that read one value stay together."""
    group: list[WeightSite] = []
    size = 0
    for readers in _by_activation(sites).values():
        own = 4 * _inputs_of(readers[0]) ** 2
        if group and size + own > pass_bytes:
            yield group
            group, size = [], 0
        group.extend(readers)
        size += own
    if group:
        yield group


def _add_products_(model: ir.Model, sites: Sequence[WeightSite]) -> dict[str, tuple[str, str, str]]:
    """Make X^T X, the sum and the size of X of every input the only outputs; return their names."""
    values = {str(value.name): value for value in model.graph.inputs}
    values.update({str(out.name): out for node in model.graph for out in node.outputs})
    model.graph.outputs.clear()
    found: dict[str, tuple[str, str, str]] = {}
    axis = add_initializer(model, "moment_axis", np.asarray([0]))
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
        total = ir.node("ReduceSum", [rows.outputs[0], axis], attributes={"keepdims": 0})
        size = ir.node("Size", [data])
        model.graph.extend([rows, turned, product, total, size])
        found[name] = (f"{name}/moments", f"{name}/moment_sum", f"{name}/moment_size")
        types = (ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.INT64)
        for node, output, dtype in zip((product, total, size), found[name], types, strict=True):
            node.outputs[0].name, node.outputs[0].dtype = output, dtype
            model.graph.outputs.append(node.outputs[0])
    return found


def _inputs_of(site: WeightSite) -> int:
    return int(site.weight.const_value.shape[site.input_axis])


def rows_of(site: WeightSite) -> np.ndarray:
    """Return the weight as (out, in)."""
    weight = array_of(site.weight)
    if site.kind == "Conv":
        return weight[:, :, 0, 0]
    return weight if site.output_axis == 0 else weight.T


def _laid_out(codes: np.ndarray, site: WeightSite, shape: Sequence[int]) -> np.ndarray:
    """Return codes (out, in) in the weight's own layout."""
    turned = codes if site.output_axis == 0 else codes.T
    return np.ascontiguousarray(turned.reshape(tuple(shape)))
