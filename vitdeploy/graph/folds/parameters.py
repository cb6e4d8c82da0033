"""Validation of the arrays that folds take; no fold lives here."""

import numpy as np

from vitdeploy.graph.surgery import Float64


def checked(array: Float64, shape: tuple[int, ...], name: str) -> Float64:
    """Return `array` as float64, or raise ValueError where its shape or values are wrong."""
    result: Float64 = np.asarray(array, dtype=np.float64)
    if result.shape != shape:
        raise ValueError(f"{name} needs an array of shape {shape}, got {result.shape}")
    if not bool(np.isfinite(result).all()):
        raise ValueError(f"{name} needs finite numbers")
    return result


def checked_scale(array: Float64, shape: tuple[int, ...], name: str) -> Float64:
    """Return `array` as float64 like `checked`, and refuse zeros."""
    result = checked(array, shape, name)
    if not bool(np.all(result)):
        raise ValueError(f"{name} needs scales other than zero")
    return result
