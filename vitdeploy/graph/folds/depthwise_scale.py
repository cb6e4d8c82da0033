"""F7: scale the channels of a depthwise convolution and undo it in the convolutions behind it.

W_dw' = W_dw / s, b_dw' = b_dw / s, W_pw' = W_pw diag(s), for a depthwise convolution that nothing
nonlinear separates from its readers (FastViT's ConvMlp: 7x7 depthwise, then fc1).
"""

from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.folds.parameters import checked_scale
from vitdeploy.graph.layout import concrete_shapes
from vitdeploy.graph.linear import Linear, find_linears, scale_outputs_
from vitdeploy.graph.readership import Readership, absorb_, absorbers
from vitdeploy.graph.surgery import Float64


@dataclass(frozen=True, eq=False)
class Site:
    """A depthwise convolution and who reads it."""

    depthwise: Linear
    readers: Readership

    @property
    def name(self) -> str:
        """The name of the depthwise convolution."""
        return self.depthwise.name


def find(model: ir.Model) -> list[Site]:
    """Return every grouped convolution of `model`."""
    shapes = concrete_shapes(model)
    return [
        Site(linear, absorbers(model, linear.output, shapes, axis=1))
        for linear in find_linears(model.graph)
        if linear.group > 1
    ]


def applies(site: Site) -> str | None:
    """Return why the readers cannot undo a scale, or None where they can."""
    return site.readers.reason


def apply_(model: ir.Model, site: Site, scale: Float64) -> None:
    """Divide the depthwise convolution's result by `scale` and undo it in its readers.

    Args:
        model: The model `site` is from.
        site: A site of `find`.
        scale: (C,) float64, finite, not zero.

    Raises:
        ValueError: The fold does not apply, or `scale` has the wrong shape or values.
    """
    if site.readers.reason is not None:
        raise ValueError(f"cannot scale {site.name}: {site.readers.reason}")
    factor = checked_scale(scale, (site.depthwise.out_channels,), site.name)
    scale_outputs_(model.graph, site.depthwise, 1.0 / factor)
    absorb_(model.graph, site.readers, factor, None)
