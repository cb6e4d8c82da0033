"""The two parts of a SAM model: their tensors, and example prompts to export with.

`image_embeddings` leaves the first part and enters the second under one name, and those of video
memory, which are `video`'s.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.models.spec import ExportPart, TensorSpec

BATCH = "batch"
PROMPTS = "prompts"
POINTS = "points"
Shapes = Mapping[str, tuple[int, ...]]
"""Of the image encoder's outputs for one picture, by name: (C, h, w)."""


def encoder_part(module: Any, image_size: int, outputs: Shapes) -> ExportPart:
    """Return `image_encoder`: `pixel_values` -> `image_embeddings` (and finer features)."""
    return ExportPart(
        name="image_encoder",
        module=module.eval(),
        inputs=(TensorSpec("pixel_values", (BATCH, 3, image_size, image_size)),),
        outputs=tuple(TensorSpec(name, (BATCH, *shape)) for name, shape in outputs.items()),
    )


def decoder_part(module: Any, image_size: int, features: Shapes) -> ExportPart:
    """Return `mask_decoder` with the tensor names of segment-anything's reference ONNX.

    Args:
        module: takes `features`, then the prompt's tensors; `masks` is how many one prompt gives.
        image_size: pixels of the square the image encoder reads.
        features: what the image encoder returns for one picture.
    """
    _, rows, columns = features["image_embeddings"]
    low = (4 * rows, 4 * columns)
    masks = int(module.masks)
    tracked = getattr(module, "object_head", None) is not None
    inputs = (
        *(TensorSpec(name, (1, *shape)) for name, shape in features.items()),
        TensorSpec("point_coords", (PROMPTS, POINTS, 2)),
        TensorSpec("point_labels", (PROMPTS, POINTS)),
        TensorSpec("mask_input", (1, 1, *low)),
        TensorSpec("has_mask_input", (1,)),
        TensorSpec("orig_im_size", (2,)),
    )
    return ExportPart(
        name="mask_decoder",
        module=module.eval(),
        inputs=inputs,
        outputs=(
            TensorSpec("masks", (PROMPTS, masks, "height", "width")),
            TensorSpec("iou_predictions", (PROMPTS, masks)),
            TensorSpec("low_res_masks", (PROMPTS, masks, *low)),
            *(_tracked(masks, features["image_embeddings"][0]) if tracked else ()),
        ),
        example=_example(inputs, image_size),
    )


def _tracked(masks: int, channels: int) -> tuple[TensorSpec, TensorSpec]:
    """Return what a tracker reads of the decoder beside masks."""
    return (
        TensorSpec("object_pointers", (PROMPTS, masks, channels)),
        TensorSpec("object_scores", (PROMPTS, 1)),
    )


def _example(
    inputs: tuple[TensorSpec, ...], image_size: int
) -> Callable[[int], dict[str, NDArray[np.float32]]]:
    """Return what draws `count` prompts of `count + 1` points each, and a picture of that kind."""

    def draw(count: int) -> dict[str, NDArray[np.float32]]:
        rng = np.random.default_rng(count)
        feeds = drawn_feeds(inputs, {PROMPTS: count, POINTS: count + 1}, rng)
        coords, labels = feeds["point_coords"], feeds["point_labels"]
        coords[:] = rng.uniform(0, image_size, coords.shape)
        # every label there is, in turn
        labels[:] = np.resize(np.array([1, 2, 3, 0, -1], np.float32), labels.shape)
        feeds["has_mask_input"][:] = count % 2
        feeds["orig_im_size"][:] = (image_size // 2 + 7 * count, image_size // 2 + 11)
        return feeds

    return draw


def drawn_feeds(
    inputs: tuple[TensorSpec, ...], sizes: Mapping[str, int], rng: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    """Return normal numbers for `inputs`, whose named axes have `sizes`."""
    feeds = {}
    for tensor in inputs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        feeds[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds
