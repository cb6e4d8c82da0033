"""Activation-aware scales (AWQ, 2306.00978): which weights are scaled up before they are rounded.

A rounding error counts by how loud its input channel is. Where a LayerNorm or the values of an
attention layer feed the product, channels can be scaled exactly (`graph.folds`), so that the
weights of loud channels are rounded more finely. How strongly is measured for each group.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitdeploy.compress.int4.codes import InputMoments, nearest, output_error
from vitdeploy.compress.rounding import rows_of
from vitdeploy.compress.smoothing import FoldGroup

ALPHAS = (0.25, 0.5, 0.75, 1.0)
"""Powers of the channels' magnitude that are tried."""
LEAST_GAIN = 0.02
"""Share of the error that a scaling must take off, or the group is left as it is."""
OFF = "off"


@dataclass(frozen=True)
class Rounding:
    """How the weights of all groups are rounded while scales are compared."""

    blocks: Mapping[str, int]
    """By site name: input channels that share a scale."""
    zero_points: bool


def choose_scale(group: FoldGroup, moments: Mapping[str, InputMoments], rounding: Rounding) -> str:
    """Return the label of the scale of least output error: `off`, or a power such as `0.5`.

    Args:
        group: of products that will be INT4.
        moments: by site name.
        rounding: blocks of each product; codes are the nearest, of the scales of least error.
    """
    errors = {OFF: _error(group, np.ones(group.channels), moments, rounding)}
    for alpha in ALPHAS:
        scale = scale_of(group, f"{alpha:g}", moments)
        errors[f"{alpha:g}"] = _error(group, scale, moments, rounding)
    best = min(errors, key=lambda label: errors[label])
    return best if errors[best] < (1.0 - LEAST_GAIN) * errors[OFF] else OFF


def scale_of(group: FoldGroup, label: str, moments: Mapping[str, InputMoments]) -> np.ndarray:
    """Return (C,) what the group's channels are divided by, geometric mean 1.

    Raises:
        ValueError: `label` is neither `off` nor a number.
    """
    if label == OFF:
        return np.ones(group.channels)
    power = np.zeros(group.channels)
    for reader in group.readers:
        own = np.diag(moments[reader.site.name].product).astype(np.float64)
        np.maximum.at(power, reader.channels, own)
    # A silent channel has no say; scaling it up would only coarsen its block.
    loud = np.maximum(power, 1e-6 * power.max() or 1.0)
    logarithm = 0.5 * float(label) * np.log(loud)
    scale: np.ndarray = np.exp(logarithm - logarithm.mean())
    return scale


def _error(
    group: FoldGroup, scale: np.ndarray, moments: Mapping[str, InputMoments], rounding: Rounding
) -> float:
    total = 0.0
    for reader in group.readers:
        site = reader.site
        own = scale[reader.channels].astype(np.float32)
        scaled = moments[site.name].scaled(own)
        matrix = rows_of(site) * own
        weight = nearest(
            matrix,
            rounding.blocks[site.name],
            np.diag(scaled.product),
            zero_points=rounding.zero_points,
        )
        total += output_error(weight.dequantized().T - matrix, scaled.product)
    return total
