"""The images on which an artefact differs most from the FP32 model, small enough for a report.

Which ones and what both models say of them; how far apart outputs are is `metrics`' and
`mask_fidelity`'s, how it looks `report`'s.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vitdeploy.data import ImageSet
from vitdeploy.image_sets import Chosen
from vitdeploy.mask_fidelity import WorstMask
from vitdeploy.metrics import centred_cosines
from vitdeploy.predictor.overlay import overlay
from vitdeploy.report import WorstImage

_MOST_IMAGES = 6
_MOST_MASKS = 4
_ALIKE = 1 - 1e-6
"""Cosine above which nothing differs but rounding."""
_PIXELS = 160
_MASK_PIXELS = 240
_JPEG_QUALITY = 78


@dataclass(frozen=True)
class Answers:
    """One output of both models for all evaluation images."""

    reference: np.ndarray
    """(N, ...), FP32's."""
    own: np.ndarray
    """The artefact's, of the same shape."""
    are_logits: bool


def worst_answers(target: str, images: Chosen, answers: Answers) -> list[WorstImage]:
    """Return the images that flipped, least alike first, then the least alike of the others.

    Args:
        target: for the rows.
        images: of the run, after a pass over them.
        answers: for them, in their order.
    """
    cosines = centred_cosines(answers.reference, answers.own)
    if cosines is None:
        return []
    said = [np.zeros(len(cosines), int)] * 2
    if answers.are_logits:
        said = [answers.reference.argmax(1), answers.own.argmax(1)]
    same = said[0] == said[1]
    order = np.lexsort((cosines, same))[:_MOST_IMAGES]
    order = order[~same[order] | (cosines[order] < _ALIKE)]
    labels, pictures = images.labels, images.evaluation.images
    places = images.evaluation.readable
    rows = []
    for number in order:
        words = ["", ""]
        if answers.are_logits:
            words = [f"class {classes[number]}" for classes in said]
        truth = f"class {labels[number]}" if labels is not None and answers.are_logits else None
        rows.append(
            WorstImage(
                target=target,
                image=_name(pictures, places[number]),
                metric="cosine",
                value=float(cosines[number]),
                picture=_data_uri(pictures.open(places[number]), _PIXELS),
                reference=words[0],
                own=words[1],
                truth=truth,
            )
        )
    return rows


def worst_masks(target: str, images: Chosen, masks: Sequence[WorstMask]) -> list[WorstImage]:
    """Return the pictures whose masks agree least, each with FP32's mask and the artefact's.

    Args:
        target: for the rows.
        images: of the run, after a pass over them.
        masks: one a picture.
    """
    pictures, places = images.evaluation.images, images.evaluation.readable
    rows = []
    for worst in sorted(masks, key=lambda mask: mask.iou)[:_MOST_MASKS]:
        place = places[worst.picture]
        height, width = worst.own.shape
        picture = pictures.open(place).resize((width, height))
        drawn = [
            _data_uri(overlay(picture, [mask]), _MASK_PIXELS)
            for mask in (worst.reference, worst.own)
        ]
        share = 100.0 / (height * width)
        rows.append(
            WorstImage(
                target=target,
                image=_name(pictures, place),
                metric="mask_iou",
                value=worst.iou,
                picture=_data_uri(picture, _PIXELS),
                reference=f"{share * np.count_nonzero(worst.reference):.1f} % of the picture",
                own=f"{share * np.count_nonzero(worst.own):.1f} %",
                reference_picture=drawn[0],
                own_picture=drawn[1],
            )
        )
    return rows


def _name(images: ImageSet, place: int) -> str:
    return images.paths[place].name if images.paths else f"picture {place}"


def _data_uri(picture: Image.Image, longest: int) -> str:
    """Return a JPEG of at most `longest` pixels a side; tiny pictures keep their pixels' edges."""
    small = picture.convert("RGB")
    factor = longest / max(small.size)
    size = (max(1, round(small.width * factor)), max(1, round(small.height * factor)))
    way = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
    stream = io.BytesIO()
    small.resize(size, way).save(stream, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
