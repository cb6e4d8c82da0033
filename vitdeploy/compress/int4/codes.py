"""INT4 codes of one weight matrix: scales by block, GPTQ, and descent on both in turns.

The error to be small is that of the product's output on calibration images, tr(E M E^T) with E
the weights' error and M the second moments of the input. GPTQ (2210.17323) finds codes for given
scales; with the codes given the best scales follow by least squares, block by block, and with
those each code can be chosen anew. Every turn lowers the error. Nothing here knows a graph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitdeploy.compress.rounding import DAMPING, Steps, compensated_codes, error_spread
from vitdeploy.graph.blocks import BlockedWeight
from vitdeploy.graph.half_scales import SMALLEST_HALF

LOWEST, HIGHEST = -8, 7
SHARES = tuple(np.linspace(0.6, 1.0, 17))
"""Shares of a block's largest weight at which its largest code is tried."""
TURNS = 3
"""Of choosing scales and codes; the first takes off most, the fourth below one per cent."""
_SLICE = 512
"""Columns, whole blocks, that are chosen before the rest of the gradient is brought up to date."""
_FEW_WEIGHTS = 1 << 16
"""Whose steps are chosen together, so that what a share takes stays in the caches."""
_FEW_ROWS = 16
"""Of a slice, columns chosen one by one, each bringing the next up to date; above that, halves."""


@dataclass(frozen=True)
class InputMoments:
    """What a product reads: second moments of its input and, where a bias takes it off, the mean.

    The error that the mean of the input makes is constant, so a bias can undo it and only the
    covariance counts.
    """

    product: np.ndarray
    """(in, in) float32, per token; the covariance where `mean` is given."""
    mean: np.ndarray | None = None
    """(in,) float32."""

    def scaled(self, factor: np.ndarray) -> "InputMoments":
        """Return the moments of the input divided by `factor` (in,)."""
        inverse = (1.0 / factor).astype(np.float32)
        mean = None if self.mean is None else self.mean * inverse
        return InputMoments(self.product * np.outer(inverse, inverse), mean)


def nearest(
    matrix: np.ndarray, block_size: int, power: np.ndarray | None = None, *, zero_points: bool
) -> BlockedWeight:
    """Return each weight's nearest code.

    Args:
        matrix: (out, in) weights.
        block_size: divides the input channels.
        power: (in,) mean square of the inputs; the scales are then those of least error by it, else
            those at which the largest weight has the largest code.
        zero_points: whether blocks have one.
    """
    steps = search_steps(matrix, block_size, power, zero_points=zero_points)
    return _weight(_rounded(matrix, steps), steps)


def gptq(
    matrix: np.ndarray, block_size: int, moments: np.ndarray, *, zero_points: bool
) -> BlockedWeight:
    """Return the codes of least output error that GPTQ and descent from there find.

    Args:
        matrix: (out, in) weights.
        block_size: divides the input channels.
        moments: (in, in) of the input, per token.
        zero_points: whether blocks have one.
    """
    steps = search_steps(matrix, block_size, np.diag(moments), zero_points=zero_points)
    codes = compensated_codes(matrix, error_spread(moments), steps)
    damped = np.asarray(moments, np.float32).copy()
    diagonal = np.einsum("ii->i", damped)
    diagonal += DAMPING * float(diagonal.mean()) or 1.0
    state = _State(matrix, codes, steps, damped)
    for _ in range(TURNS):
        state.choose_scales_()
        state.choose_codes_()
    return _weight(state.codes, state.steps)


def output_error(difference: np.ndarray, moments: np.ndarray) -> float:
    """Return the squared output error per token, summed over outputs.

    Args:
        difference: (out, in) error of the weights.
        moments: (in, in) of the input, per token.
    """
    return float(np.sum((difference @ moments) * difference, dtype=np.float64))


def search_steps(
    matrix: np.ndarray, block_size: int, power: np.ndarray | None, *, zero_points: bool
) -> Steps:
    """Return the scales (and zero points) of least error by block, rounded to FP16's numbers.

    Args:
        matrix: (out, in) weights.
        block_size: divides the input channels.
        power: (in,) what a squared error in each channel costs; None takes the full range.
        zero_points: whether blocks have one.
    """
    outputs, inputs = matrix.shape
    cost = np.ones(inputs) if power is None else np.maximum(power, 0.0)
    cost = cost.astype(np.float32).reshape(1, -1, block_size)
    shares = SHARES if power is not None else (1.0,)
    few = max(1, _FEW_WEIGHTS // inputs)
    parts = [
        _best_steps(matrix[start : start + few], cost, shares, zero_points=zero_points)
        for start in range(0, outputs, few)
    ]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return replace(
        parts[0],
        scales=np.concatenate([part.scales for part in parts]),
        zeros=np.concatenate(zeros) if zeros else None,
    )


def _best_steps(
    matrix: np.ndarray, cost: np.ndarray, shares: Sequence[float], *, zero_points: bool
) -> Steps:
    """Return the steps of least error at any of the shares; `cost` (1, blocks, in of a block)."""
    blocks = matrix.reshape(len(matrix), *cost.shape[1:])
    best = Steps(np.empty(0), LOWEST, HIGHEST)
    least: np.ndarray | None = None
    for share in shares:
        steps = _steps_at(blocks, float(share), zero_points=zero_points)
        codes = _rounded(matrix, steps).reshape(blocks.shape)
        counts = codes - (0 if steps.zeros is None else steps.zeros[:, :, None])
        difference = counts * steps.scales[:, :, None] - blocks
        error = (np.square(difference) * cost).sum(axis=2)
        if least is None:
            best, least = steps, error
            continue
        is_better = error < least
        least = np.where(is_better, error, least)
        zeros = None
        if steps.zeros is not None and best.zeros is not None:
            zeros = np.where(is_better, steps.zeros, best.zeros)
        best = replace(best, scales=np.where(is_better, steps.scales, best.scales), zeros=zeros)
    return best


def _steps_at(blocks: np.ndarray, share: float, *, zero_points: bool) -> Steps:
    if not zero_points:
        scales = np.abs(blocks).max(axis=2) * (share / HIGHEST)
        return Steps(_half(scales), LOWEST, HIGHEST)
    low, high = np.minimum(blocks.min(axis=2), 0.0), np.maximum(blocks.max(axis=2), 0.0)
    scales = _half((high - low) * (share / (HIGHEST - LOWEST)))
    zeros = np.clip(np.rint(LOWEST - low * share / scales), LOWEST, HIGHEST)
    return Steps(scales, LOWEST, HIGHEST, zeros.astype(np.int8))


def _half(scales: np.ndarray) -> np.ndarray:
    """Return positive float32 numbers that FP16 holds; its smallest for blocks of zeros."""
    rounded = scales.astype(np.float16).astype(np.float32)
    return np.maximum(rounded, np.float32(SMALLEST_HALF))


def _rounded(matrix: np.ndarray, steps: Steps) -> np.ndarray:
    size = matrix.shape[1] // steps.scales.shape[1]
    exact: np.ndarray = np.rint(matrix / np.repeat(steps.scales, size, axis=1))
    if steps.zeros is not None:
        exact += np.repeat(steps.zeros, size, axis=1)
    clipped: np.ndarray = np.clip(exact, steps.lowest, steps.highest)
    return clipped.astype(np.int8)


def _weight(codes: np.ndarray, steps: Steps) -> BlockedWeight:
    """Return codes (out, in) in the layout of a MatMul's weight."""
    zeros = None if steps.zeros is None else np.ascontiguousarray(steps.zeros.T)
    scales = np.ascontiguousarray(steps.scales.T, np.float32)
    return BlockedWeight(np.ascontiguousarray(codes.T), scales, zeros)


class _State:
    """Codes and scales of one matrix, with the gradient of the output error kept up to date."""

    def __init__(
        self, matrix: np.ndarray, codes: np.ndarray, steps: Steps, moments: np.ndarray
    ) -> None:
        self.codes = codes.copy()
        self.steps = steps
        self._size = matrix.shape[1] // steps.scales.shape[1]
        self._moments = moments
        # (out, in): (W - Q) M; where it is zero the error is least.
        self._gradient = (matrix - self._values()).astype(np.float32) @ moments

    def choose_scales_(self) -> None:
        """Give every block in turn the scale of least error for its codes."""
        scales = self.steps.scales.copy()
        for columns in self._slices():
            own = self._gradient[:, columns].copy()
            counts = self._counts(columns)
            changes = np.empty_like(counts)
            for block in range(columns.start // self._size, columns.stop // self._size):
                within = slice(block * self._size, (block + 1) * self._size)
                at = slice(within.start - columns.start, within.stop - columns.start)
                inner = np.sum((counts[:, at] @ self._moments[within, within]) * counts[:, at], 1)
                slope = np.sum(own[:, at] * counts[:, at], axis=1)
                wanted = scales[:, block] + np.divide(
                    slope, inner, out=np.zeros_like(slope), where=inner > 0
                )
                # A scale that leaves the positive numbers means codes of noise: they keep theirs.
                valid = wanted > 0.25 * scales[:, block]
                chosen = np.where(valid, _half(wanted), scales[:, block])
                changes[:, at] = counts[:, at] * (chosen - scales[:, block])[:, None]
                own -= changes[:, at] @ self._moments[within, columns]
                scales[:, block] = chosen
            self._gradient -= changes @ self._moments[columns]
        self.steps = replace(self.steps, scales=scales)

    def choose_codes_(self) -> None:
        """Give every weight in turn the code of least error, all others given."""
        for columns in self._slices():
            # A row for each column: what one step touches lies together.
            own = np.ascontiguousarray(self._gradient[:, columns].T)
            codes = np.ascontiguousarray(self.codes[:, columns].T)
            within = self._moments[columns, columns]
            scales = self.steps.scales[:, self._blocks_of(columns)].T
            self._choose_rows_(own, codes, within, np.ascontiguousarray(scales))
            self.codes[:, columns] = codes.T
            self._gradient -= own.T @ self._moments[columns]

    def _choose_rows_(
        self, own: np.ndarray, codes: np.ndarray, within: np.ndarray, scales: np.ndarray
    ) -> None:
        """Choose codes (in, out); `own`, their gradient, becomes the change of their weights."""
        count = len(own)
        if count > _FEW_ROWS:
            first, second = slice(0, count // 2), slice(count // 2, count)
            self._choose_rows_(own[first], codes[first], within[first, first], scales[first])
            own[second] -= within[second, first] @ own[first]
            self._choose_rows_(own[second], codes[second], within[second, second], scales[second])
            return
        for row in range(count):
            before = codes[row].astype(np.float32)
            wanted = before + own[row] / (within[row, row] * scales[row])
            after = np.clip(np.rint(wanted), self.steps.lowest, self.steps.highest)
            codes[row] = after
            own[row] = (after - before) * scales[row]
            own[row + 1 :] -= np.outer(within[row + 1 :, row], own[row])

    def _slices(self) -> Iterator[slice]:
        inputs = self.codes.shape[1]
        for start in range(0, inputs, _SLICE):
            yield slice(start, min(start + _SLICE, inputs))

    def _counts(self, columns: slice) -> np.ndarray:
        """Return (out, columns) how many steps each code stands for."""
        counts = self.codes[:, columns].astype(np.float32)
        if self.steps.zeros is not None:
            counts -= self.steps.zeros[:, self._blocks_of(columns)]
        return counts

    def _blocks_of(self, columns: slice) -> np.ndarray:
        return np.asarray(np.arange(columns.start, columns.stop) // self._size)

    def _values(self) -> np.ndarray:
        zeros = 0 if self.steps.zeros is None else np.repeat(self.steps.zeros, self._size, axis=1)
        steps = np.repeat(self.steps.scales, self._size, axis=1)
        return np.asarray((self.codes.astype(np.float32) - zeros) * steps)
