"""Which of a bundle's artefacts a predictor opens, and how a picture gets into one."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.bundle import Artifact, Bundle, TensorInfo
from vitdeploy.data import open_image
from vitdeploy.errors import DataError, UsageError, suggest
from vitdeploy.runner import Feeds, Outputs

Picture: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8]"
"""A file, a PIL image, or an array (height, width, 3), red first."""

IMAGE_ENCODER, MASK_DECODER = "image_encoder", "mask_decoder"


def parts_of(bundle: Bundle, target: str | None) -> dict[str, Artifact]:
    """Return by part the artefacts of `target`; of the bundle's first target where None.

    Raises:
        UsageError: the bundle lacks that target.
        DataError: it lists no artefact.
    """
    known = list(dict.fromkeys(artifact.target for artifact in bundle.artifacts()))
    if not known:
        raise DataError(f"bundle '{bundle.path}' lists no artefact; export it again.")
    if target is not None and target not in known:
        raise UsageError(
            f"bundle '{bundle.path}' has no target '{target}'; it has "
            f"{', '.join(known)}.{suggest(target, known)}"
        )
    return {artifact.part: artifact for artifact in bundle.artifacts(target or known[0])}


def open_picture(image: Picture) -> Image.Image:
    """Return an RGB picture from a file, a PIL image or an array (height, width, 3) uint8.

    Raises:
        DataError: the file is missing or no image, or the array is another.
    """
    if not isinstance(image, np.ndarray):
        return open_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"picture is an array {image.shape} of {image.dtype}; allowed: "
            "(height, width, 3) uint8, red first."
        )
    return Image.fromarray(image)


def run_pictures(
    runner: Callable[[Feeds], Outputs], pixels: TensorInfo, pictures: np.ndarray
) -> Outputs:
    """Return the outputs for `pictures`, in batches of the size the engine takes.

    Args:
        runner: of a part whose one input is pictures.
        pixels: that input; its first axis is a number where the batch is fixed.
        pictures: (N, 3, H, W) float32, normalised; or (N, height, width, 3) uint8, where the
            graph prepares them itself.
    """
    fixed = pixels.shape[0]
    if not isinstance(fixed, int):
        return runner({pixels.name: pictures})
    batches: list[Outputs] = []
    for start in range(0, len(pictures), fixed):
        chunk = pictures[start : start + fixed]
        filled = np.resize(chunk, (fixed, *chunk.shape[1:]))
        outputs = runner({pixels.name: filled})
        batches.append({name: value[: len(chunk)] for name, value in outputs.items()})
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
