"""Bias correction: take away what rounding the weights adds on average.

E[x (W_q - W)] = (W_q - W)^T E[x] is known from the calibration means (1906.04721, section 4.2);
the layer's float bias takes it off. Layers without a bias get none: another Add costs time.
"""

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.linear import bias_of, is_padded, linear_at, set_bias_
from vitdeploy.graph.qdq import QuantizedWeight
from vitdeploy.graph.sites import WeightSite, array_of


def correct_bias_(
    model: ir.Model, site: WeightSite, weight: QuantizedWeight, mean: np.ndarray
) -> bool:
    """Correct the bias of one product in place; return whether it could be.

    Args:
        model: the graph `site` is from, its weights still in float.
        site: the product.
        weight: the codes it will get.
        mean: (in,) mean of its input over the calibration images.
    """
    linear = linear_at(site.node)
    if linear is None or linear.bias is None or is_padded(linear) or site.groups != 1:
        return False
    shape = [1] * weight.codes.ndim
    shape[site.output_axis] = -1
    error = weight.codes * weight.scales.reshape(shape).astype(np.float64)
    error -= array_of(site.weight)
    if site.kind == "Conv":
        drift = error.reshape(*error.shape[:2], -1).sum(axis=2) @ mean
    else:
        drift = mean @ (error if site.input_axis == 0 else error.T)
    set_bias_(model.graph, linear, bias_of(linear) - drift)
    return True
