"""How many bytes weights take in INT4 and in INT8, and what that leaves of a goal of size."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from vitdeploy.errors import CompressionError
from vitdeploy.graph.save import weights_bytes
from vitdeploy.graph.sites import WeightSite, array_of
from vitdeploy.recipe import Int4Section

SMALLEST_WEIGHT = 4096
"""Products with fewer weights stay in float: a scale for each channel would eat what is saved."""


def spare_bytes(
    model: ir.Model,
    every: Sequence[WeightSite],
    blocks: Mapping[str, int],
    options: Int4Section,
) -> float | None:
    """Return what a goal of size leaves for INT8 when all that can be is INT4; None without a goal.

    Raises:
        CompressionError: the goal is less than INT4 takes.
    """
    if options.max_size_percent is None:
        return None
    whole = weights_bytes(model)
    least = float(whole)
    for site in every:
        if site.name in blocks:
            block = blocks[site.name]
            least += int4_bytes(site, block, zero_points=options.zero_points)
        elif is_stored(site):
            least += int8_bytes(site)
        least -= array_of(site.weight).nbytes if site.name in blocks or is_stored(site) else 0
    spare = options.max_size_percent / 100 * whole - least
    if spare < 0:
        raise CompressionError(
            f"int4.max_size_percent is {options.max_size_percent:g}, but with every product in "
            f"INT4 the graph has {100 * least / whole:.1f} % of FP32's size. Allow more."
        )
    return spare


def int4_bytes(site: WeightSite, block: int, *, zero_points: bool) -> float:
    """Return what a product's weights take: codes, FP16 scales, and zero points where asked for."""
    size = array_of(site.weight).size
    return size / 2 + size / block * (2.5 if zero_points else 2.0)


def int8_bytes(site: WeightSite) -> float:
    """Return what a product's weights take: codes, and an FP32 scale and a zero a channel."""
    weight = array_of(site.weight)
    return float(weight.size + 5 * weight.shape[site.output_axis])


def is_stored(site: WeightSite) -> bool:
    """Return whether a product that is not INT4 is INT8 rather than float."""
    return site.groups == 1 and array_of(site.weight).size >= SMALLEST_WEIGHT
