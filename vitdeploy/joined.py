"""Parts joined by tensor name: an image encoder, and what reads its outputs and prompts.

What one picture is asked, and what a decoder makes of it. How close two models' masks are is
`mask_fidelity`'s, which artefacts run is the callers' matter.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import ImageSet, Preprocess
from vitdeploy.data.packaged import scene_masks
from vitdeploy.errors import DataError
from vitdeploy.mask_resizing import masks_at_picture
from vitdeploy.masks import Mask
from vitdeploy.models.spec import ExportPart
from vitdeploy.prompts import (
    Prompt,
    Size,
    best_masks,
    grid_prompts,
    object_prompts,
    prompt_feeds,
)
from vitdeploy.runner import Feeds, Outputs, Runner
from vitdeploy.zero_shot import reads_texts, text_feeds

GOLDEN_PICTURES = 2
"""An embedding of SAM has 4 MB, so few pictures are kept in a bundle."""
GOLDEN_PROMPTS = 2
"""Of each of them: a point and a box."""
_MASK_NAMES = ("iou_predictions", "low_res_masks", "object_pointers", "object_scores")
"""Outputs of a mask decoder on every engine; the last two for video alone."""
_LONGEST_SIDE = 1024
"""Pixels of the masks compared, at most; a camera's picture would make masks of 100 MB a prompt."""
_MOST_OBJECTS = 8
_GRID_SIDE = 2


@dataclass(frozen=True)
class Asked:
    """What is asked of one picture."""

    feeds: Feeds
    """The mask decoder's, without the image encoder's outputs; see `prompts.prompt_feeds`."""
    truth: NDArray[np.bool_] | None = None
    """(P, height, width): the object each prompt means, where that is known."""

    @property
    def size(self) -> Size:
        """Height and width of the masks."""
        height, width = self.feeds["orig_im_size"]
        return int(height), int(width)


@dataclass(frozen=True)
class Shown:
    """The masks of one picture that a user would see, one a prompt."""

    masks: NDArray[np.bool_]
    """(P, height, width)."""
    choice: NDArray[np.int64]
    """(P,): which of the decoder's masks each one is."""
    iou_predictions: NDArray[np.float32]
    """(P, M)."""


@dataclass(frozen=True)
class JoinedReference:
    """What the model as loaded makes of all prompts on all evaluation pictures."""

    asked: tuple[Asked, ...]
    shown: tuple[Shown, ...]
    golden: Outputs
    """Of the first pictures and prompts; see `golden_outputs`."""


DRAWN_FRAMES = 2
"""That a part of a model's video memory is compared on."""


def is_drawn(part: ExportPart) -> bool:
    """Return whether a part is compared on what its `example` draws: neither pictures nor prompts.

    Those are a text tower, and the parts of a model's video memory.
    """
    names = [tensor.name for tensor in part.inputs]
    return part.example is not None and "point_coords" not in names


def drawn_feeds(part: ExportPart) -> Feeds:
    """Return what such a part is compared on: all prompts of a text tower, a few frames."""
    assert part.example is not None
    return text_feeds(part) if reads_texts(part) else dict(part.example(DRAWN_FRAMES))


class _Tensor(Protocol):
    @property
    def name(self) -> str: ...


def follows(inputs: Iterable[_Tensor], earlier: Mapping[str, Outputs]) -> bool:
    """Return whether a part with these inputs reads prompts, and outputs of `earlier` parts."""
    names = [tensor.name for tensor in inputs]
    made = {name for outputs in earlier.values() for name in outputs}
    return "point_coords" in names and not made.isdisjoint(names)


def features_of(inputs: Iterable[_Tensor], earlier: Mapping[str, Outputs]) -> Outputs:
    """Return those outputs of earlier parts that a part reads, by the name they share.

    Args:
        inputs: of the later part.
        earlier: outputs (N, ...) by part.
    """
    made = {name: value for outputs in earlier.values() for name, value in outputs.items()}
    return {tensor.name: made[tensor.name] for tensor in inputs if tensor.name in made}


def asked_of(images: ImageSet, index: int, preprocess: Preprocess, mask_input: Size) -> Asked:
    """Return the prompts on picture `index`: on each known object a point and a box, else a few.

    Args:
        images: the set it is of.
        index: its place there.
        preprocess: of the image encoder.
        mask_input: size of the decoder's input of that name.
    """
    truth = _known_masks(images, index)
    if truth is None:
        picture = images.open(index)
        size = _shown_size((picture.height, picture.width))
        prompts = _usual_prompts(size)
    else:
        size = (truth.shape[1], truth.shape[2])
        prompts = [prompt for mask in truth for prompt in object_prompts(mask)]
        truth = truth.repeat(2, axis=0)
    return Asked(prompt_feeds(prompts, size, preprocess, mask_input), truth)


def decoded(runner: Runner, features: Outputs, asked: Sequence[Asked]) -> Iterator[Outputs]:
    """Yield the decoder's outputs for each picture.

    Args:
        runner: of the decoder.
        features: (N, ...) outputs of the image encoder for the same pictures.
        asked: of each picture.

    Raises:
        DataError: an output is not finite.
    """
    for number, question in enumerate(asked):
        own = {name: value[number : number + 1] for name, value in features.items()}
        outputs = runner({**question.feeds, **own})
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise DataError(
                    f"output '{name}' of the mask decoder on {runner.engine} holds NaN or "
                    "infinity; the artefact is wrong."
                )
        yield outputs


def shown_masks(
    outputs: Outputs,
    asked: Asked,
    preprocess: Preprocess,
    choice: NDArray[np.int64] | None = None,
) -> Shown:
    """Return one mask a prompt at the picture's size: those of `choice`, or the model's own."""
    quality = np.asarray(outputs["iou_predictions"], np.float32)
    if choice is None:
        choice = best_masks(quality, asked.feeds["point_labels"])
    rows = np.arange(len(choice))
    if "masks" in outputs:
        logits = outputs["masks"][rows, choice]
    else:
        low = np.asarray(outputs["low_res_masks"][rows, choice], np.float32)
        logits = masks_at_picture(low, asked.size, preprocess)
    return Shown(logits > 0, choice, quality)


def reference_of(
    outputs: Iterable[Outputs], asked: tuple[Asked, ...], preprocess: Preprocess
) -> JoinedReference:
    """Return what is kept of the reference's outputs, a picture at a time."""
    shown: list[Shown] = []
    first: list[Outputs] = []
    for question, own in zip(asked, outputs, strict=True):
        shown.append(shown_masks(own, question, preprocess))
        if len(first) < GOLDEN_PICTURES:
            first.append(own)
    return JoinedReference(asked, tuple(shown), golden_outputs(first))


def golden_inputs(asked: Sequence[Asked]) -> Outputs:
    """Return the first prompts on the first pictures, with an axis for the pictures in front."""
    first = [question.feeds for question in asked[:GOLDEN_PICTURES]]
    prompted = ("point_coords", "point_labels")
    return {
        name: np.stack(
            [feeds[name][:GOLDEN_PROMPTS] if name in prompted else feeds[name] for feeds in first]
        ).astype(np.float32)
        for name in first[0]
    }


def golden_outputs(outputs: Sequence[Outputs]) -> Outputs:
    """Return the outputs for `golden_inputs`, with an axis for the pictures in front."""
    return {
        name: np.stack([own[name][:GOLDEN_PROMPTS] for own in outputs]).astype(np.float32)
        for name in _MASK_NAMES
        if name in outputs[0]
    }


def asked_from_golden(inputs: Mapping[str, NDArray[Any]]) -> tuple[Asked, ...]:
    """Return what `golden_inputs` were made of, as far as it is in them."""
    count = len(inputs["point_coords"])
    return tuple(Asked({name: value[n] for name, value in inputs.items()}) for n in range(count))


def outputs_from_golden(outputs: Mapping[str, NDArray[Any]]) -> list[Outputs]:
    """Return golden outputs picture by picture."""
    count = len(outputs["iou_predictions"])
    return [{name: value[n] for name, value in outputs.items()} for n in range(count)]


def one_prompt(asked: Asked) -> Feeds:
    """Return the feeds of the first prompt alone, for timing."""
    feeds = dict(asked.feeds)
    for name in ("point_coords", "point_labels"):
        feeds[name] = feeds[name][:1]
    return feeds


def _known_masks(images: ImageSet, index: int) -> NDArray[np.bool_] | None:
    """Return (K, height, width) of the objects seen, of the packaged scenes alone."""
    if images.origin != "packaged" or not images.name.startswith("scenes/"):
        return None
    masks: list[Mask] = [mask for mask in scene_masks(images.paths[index]) if mask.any()]
    return np.stack(masks[:_MOST_OBJECTS]) if masks else None


def _shown_size(picture: Size) -> Size:
    share = min(1.0, _LONGEST_SIDE / max(picture))
    height, width = (max(1, round(share * side)) for side in picture)
    return height, width


def _usual_prompts(size: Size) -> list[Prompt]:
    """Return points in a grid and two boxes, a point and a box first."""
    height, width = size
    points = grid_prompts(size, _GRID_SIDE)
    middle = Prompt(box=(0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height))
    corner = Prompt(box=(0.1 * width, 0.1 * height, 0.5 * width, 0.6 * height))
    return [points[0], middle, points[1], corner, *points[2:]]
