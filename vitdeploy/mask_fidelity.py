"""How close an artefact's masks are to the reference's: rows of the report for all parts together.

Two masks' own agreement is `masks`'; which prompts are asked, `joined`'s.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import Preprocess
from vitdeploy.joined import (
    GOLDEN_PICTURES,
    Asked,
    JoinedReference,
    Shown,
    asked_from_golden,
    golden_outputs,
    outputs_from_golden,
    reference_of,
    shown_masks,
)
from vitdeploy.masks import boundary_iou, mask_iou
from vitdeploy.report import FidelityRow
from vitdeploy.runner import Outputs

WHOLE = "model"
"""The part's name in what is said of all parts together."""


@dataclass(frozen=True)
class WorstMask:
    """The mask of one picture that agrees least with the reference's."""

    picture: int
    """Its place among the pictures that could be read."""
    iou: float
    reference: NDArray[np.bool_]
    """(height, width)."""
    own: NDArray[np.bool_]
    """The artefact's, (height, width)."""


@dataclass(frozen=True)
class JudgedMasks:
    """How close an artefact's masks are."""

    rows: list[FidelityRow]
    golden: Outputs
    worst: list[WorstMask]
    """One a picture, in their order."""


def judge(
    target: str, reference: JoinedReference, outputs: Iterable[Outputs], preprocess: Preprocess
) -> JudgedMasks:
    """Return how close an artefact's masks are to the reference's, and its golden outputs.

    Args:
        target: for the rows.
        reference: of the model as loaded.
        outputs: the artefact's decoder's, picture by picture, on its own embeddings.
        preprocess: of the image encoder.
    """
    scores: list[_Scores] = []
    first: list[Outputs] = []
    worst: list[WorstMask] = []
    for question, expected, own in zip(reference.asked, reference.shown, outputs, strict=True):
        same = shown_masks(own, question, preprocess, expected.choice)
        score = _score(question, expected, (same, shown_masks(own, question, preprocess)))
        row = int(np.argmin(score.iou))
        worst.append(
            WorstMask(len(scores), score.iou[row], expected.masks[row], same.masks[row].copy())
        )
        scores.append(score)
        if len(first) < GOLDEN_PICTURES:
            first.append(own)
    return JudgedMasks(_rows(target, scores), golden_outputs(first), worst)


def golden_rows(
    target: str,
    inputs: Mapping[str, NDArray[Any]],
    outputs: tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]],
    preprocess: Preprocess,
) -> list[FidelityRow]:
    """Return how close two golden outputs' masks are, of the reference and of an artefact."""
    asked = asked_from_golden(inputs)
    expected, seen = (outputs_from_golden(one) for one in outputs)
    reference = reference_of(expected, asked, preprocess)
    return judge(target, reference, seen, preprocess).rows


@dataclass(frozen=True)
class _Scores:
    """Of one picture, a number a prompt."""

    iou: list[float]
    boundary: list[float]
    same_choice: list[bool]
    prediction_error: list[float]
    truth: list[tuple[float, float]]
    """IoU of the reference's and of the artefact's mask with the known one; empty if unknown."""


def _score(asked: Asked, expected: Shown, found: tuple[Shown, Shown]) -> _Scores:
    """Return the scores of one picture; `found` are masks of the reference's choice and its own."""
    same, own = found
    pairs = list(zip(expected.masks, same.masks, strict=True))
    rows = np.arange(len(expected.choice))
    places = (rows, expected.choice)
    error = np.abs(same.iou_predictions[places] - expected.iou_predictions[places])
    known = () if asked.truth is None else asked.truth
    return _Scores(
        iou=[mask_iou(a, b) for a, b in pairs],
        boundary=[boundary_iou(a, b) for a, b in pairs],
        same_choice=list(own.choice == expected.choice),
        prediction_error=error.tolist(),
        truth=[
            (mask_iou(mask, expected.masks[row]), mask_iou(mask, own.masks[row]))
            for row, mask in enumerate(known)
        ],
    )


def _rows(target: str, scores: Sequence[_Scores]) -> list[FidelityRow]:
    """Return the rows of the whole model; the artefact's masks are those the reference shows."""
    iou = np.concatenate([s.iou for s in scores])
    boundary = np.concatenate([s.boundary for s in scores])
    agreement = 100.0 * float(np.concatenate([s.same_choice for s in scores]).mean())
    error = float(np.concatenate([s.prediction_error for s in scores]).mean())
    found = [
        ("mask_iou_mean", 1.0, float(iou.mean()), "IoU"),
        ("mask_iou_min", 1.0, float(iou.min()), "IoU"),
        ("boundary_iou_mean", 1.0, float(boundary.mean()), "IoU"),
        ("mask_choice_agreement", 100.0, agreement, "percent"),
        ("iou_prediction_error", 0.0, error, "absolute"),
    ]
    truth = np.array([pair for s in scores for pair in s.truth])
    if len(truth):
        reference, value = (float(mean) for mean in truth.mean(axis=0))
        found.append(("truth_iou_mean", reference, value, "IoU"))
    return [
        FidelityRow(
            target=target,
            part=WHOLE,
            output="masks",
            metric=metric,
            reference=reference,
            value=value,
            delta=value - reference,
            unit=unit,
            n=len(iou),
        )
        for metric, reference, value, unit in found
    ]
