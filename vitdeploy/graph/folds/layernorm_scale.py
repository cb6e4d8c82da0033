"""F1: scale and shift the channels of a LayerNorm and undo it in the layers that read it.

g' = g / s, B' = (B - z) / s, W' = W diag(s), b' = b + W z: the function stays, the activation that
is quantised gets channels of one range (SmoothQuant 2211.10438, Outlier Suppression+ 2304.09145,
RepQ-ViT 2212.08254). Choosing s and z is the caller's business.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.folds.parameters import checked, checked_scale
from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.readership import Readership, absorb_, absorbers
from vitdeploy.graph.surgery import Float64, constant_of, new_constant_, set_constant_


@dataclass(frozen=True, eq=False)
class Site:
    """A LayerNormalization over the last axis and who reads it."""

    norm: ir.Node
    channels: int
    readers: Readership

    @property
    def name(self) -> str:
        """The name of the norm."""
        return str(self.norm.name)


def find(model: ir.Model) -> list[Site]:
    """Return every LayerNormalization with constant parameters over one axis, in graph order."""
    shapes = concrete_shapes(model)
    sites = []
    for node in model.graph:
        if node.op_type != "LayerNormalization":
            continue
        gamma = constant_of(node.inputs[1])
        beta = node.inputs[2] if len(node.inputs) > 2 else None
        if gamma is None or gamma.ndim != 1 or (beta is not None and constant_of(beta) is None):
            continue
        sites.append(Site(node, gamma.size, absorbers(model, node.outputs[0], shapes)))
    return sites


def applies(site: Site) -> str | None:
    """Return why a scale of this norm cannot be undone by its readers, or None where it can."""
    return site.readers.reason


def shift_applies(site: Site) -> str | None:
    """Return why a shift cannot be undone by the readers, or None where it can."""
    return site.readers.reason or site.readers.shift_reason


def apply_(model: ir.Model, site: Site, scale: Float64, shift: Float64 | None = None) -> None:
    """Divide the norm's result by `scale` after subtracting `shift`, and undo it in the readers.

    Args:
        model: The model `site` is from.
        site: A site of `find`.
        scale: (C,) float64, finite, not zero.
        shift: (C,) float64 in the units of the norm's result, or None for no shift.

    Raises:
        ValueError: The fold does not apply, or `scale` or `shift` has the wrong shape or values.
    """
    moved = shift is not None and bool(np.any(shift))
    reason = shift_applies(site) if moved else applies(site)
    if reason is not None:
        raise ValueError(f"cannot fold {site.name}: {reason}")
    factor = checked_scale(scale, (site.channels,), site.name)
    offset = np.zeros(site.channels) if shift is None else checked(shift, factor.shape, site.name)
    _rescale_norm_(model.graph, site.norm, factor, offset)
    absorb_(model.graph, site.readers, factor, offset if moved else None)


def _rescale_norm_(graph: ir.Graph, norm: ir.Node, scale: Float64, shift: Float64) -> None:
    gamma, beta = norm_parameters(norm)
    set_norm_(graph, norm, gamma / scale, (beta - shift) / scale)


def norm_parameters(norm: ir.Node) -> tuple[Float64, Float64]:
    """Return gamma and beta of a LayerNormalization as float64 (C,)."""
    gamma = np.asarray(constant_of(norm.inputs[1]), np.float64)
    beta = constant_of(norm.inputs[2]) if len(norm.inputs) > 2 else None
    return gamma, np.zeros_like(gamma) if beta is None else np.asarray(beta, np.float64)


def set_norm_(graph: ir.Graph, norm: ir.Node, gamma: Float64, beta: Float64) -> None:
    """Store gamma and beta (C,), adding the beta input where it is missing and not zero."""
    set_constant_(graph, norm, 1, gamma)
    if len(norm.inputs) > 2 and norm.inputs[2] is not None:
        set_constant_(graph, norm, 2, beta)
    elif np.any(beta):
        dtype = constant_of(norm.inputs[1]).dtype  # type: ignore[union-attr]
        norm.resize_inputs(3)
        norm.replace_input_with(2, new_constant_(graph, f"{norm.name}.bias", beta.astype(dtype)))
