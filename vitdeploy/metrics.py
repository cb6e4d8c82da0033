"""How close two sets of outputs are: one function a metric, named in `METRICS`.

All take the outputs of the reference and of the artefact on the same images. A new metric
is a function and a line in `METRICS`. Percentages run from 0 to 100.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """One output of both models over the same images."""

    reference: np.ndarray
    """(N, ...) float32 of the FP32 model."""
    value: np.ndarray
    """(N, ...) float32 of the artefact."""
    labels: np.ndarray | None = None
    """(N,) int64 class indices, where the images have them."""
    are_logits: bool = False
    """Whether axis 1 is classes."""
    centred: bool = False
    """Whether `sqnr_db` looks at outputs centred over the images, as it must for random
    weights, whose outputs are nearly the same for every image."""


@dataclass(frozen=True)
class Score:
    """A metric's verdict; `reference` is the FP32 model's own value."""

    reference: float | None
    value: float
    unit: str

    @property
    def delta(self) -> float | None:
        """Return value - reference."""
        return None if self.reference is None else self.value - self.reference


Metric = Callable[[Comparison], Score | None]
"""Returns None where the metric does not apply (no labels, no classes)."""


def top1(comparison: Comparison) -> Score | None:
    """Return the share of images whose highest logit is the label's, in per cent."""
    return _top_k(comparison, 1)


def top5(comparison: Comparison) -> Score | None:
    """Return the share of images whose label is among the five highest logits, in per cent."""
    return _top_k(comparison, 5)


def agreement(comparison: Comparison) -> Score | None:
    """Return the share of images on which both models name the same class, in per cent."""
    if not comparison.are_logits:
        return None
    same = comparison.reference.argmax(1) == comparison.value.argmax(1)
    return Score(100.0, 100.0 * float(same.mean()), "percent")


def cosine_mean(comparison: Comparison) -> Score | None:
    """Return the mean over images of the cosine of centred outputs, -1..1."""
    cosines = centred_cosines(comparison.reference, comparison.value)
    return None if cosines is None else Score(1.0, float(cosines.mean()), "cosine")


def cosine_min(comparison: Comparison) -> Score | None:
    """Return the worst image's cosine of centred outputs, -1..1."""
    cosines = centred_cosines(comparison.reference, comparison.value)
    return None if cosines is None else Score(1.0, float(cosines.min()), "cosine")


def sqnr_db(comparison: Comparison) -> Score | None:
    """Return 10 log10(signal power / error power), in dB; 200 stands for no error at all."""
    reference = comparison.reference.astype(np.float64)
    error = float(np.square(reference - comparison.value).sum())
    if comparison.centred:
        if len(reference) < 2:
            return None
        reference = reference - reference.mean(axis=0)
    signal = float(np.square(reference).sum())
    if error == 0.0:
        return Score(None, 200.0, "dB")
    return Score(None, 10.0 * float(np.log10(max(signal, 1e-300) / error)), "dB")


def max_abs_diff(comparison: Comparison) -> Score | None:
    """Return the largest absolute difference of any output element."""
    difference = np.abs(comparison.reference - comparison.value)
    return Score(0.0, float(difference.max()), "absolute")


METRICS: dict[str, Metric] = {
    "top1": top1,
    "top5": top5,
    "agreement": agreement,
    "cosine_mean": cosine_mean,
    "cosine_min": cosine_min,
    "sqnr_db": sqnr_db,
    "max_abs_diff": max_abs_diff,
}


def centred_cosines(reference: np.ndarray, value: np.ndarray) -> np.ndarray | None:
    """Return (N,) cosines per image after taking the reference's mean over images from both.

    A plain cosine hides errors behind what all outputs have in common. None for one image,
    which has nothing to be centred against.
    """
    if len(reference) < 2:
        return None
    flat = reference.reshape(len(reference), -1).astype(np.float64)
    other = value.reshape(len(value), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    flat, other = flat - mean, other - mean
    norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = (np.linalg.norm(flat, axis=1) == 0) & (np.linalg.norm(other, axis=1) == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(norms > 0, (flat * other).sum(axis=1) / norms, 0.0)
    return np.where(both_zero, 1.0, cosines)


def _top_k(comparison: Comparison, k: int) -> Score | None:
    if comparison.labels is None or not comparison.are_logits or comparison.reference.shape[1] <= k:
        return None
    labels = comparison.labels[:, None]

    def percent(logits: np.ndarray) -> float:
        best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        return 100.0 * float((best == labels).any(axis=1).mean())

    return Score(percent(comparison.reference), percent(comparison.value), "percent")
