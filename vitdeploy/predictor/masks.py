"""A picture once, then prompts: masks of what is pointed at.

The image encoder runs in `set_image`; its embedding is kept, so that a prompt costs the mask
decoder alone.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vitdeploy.bundle import Artifact, load_bundle
from vitdeploy.data import Preprocess, prepare
from vitdeploy.errors import DataError, UsageError
from vitdeploy.mask_resizing import masks_at_picture
from vitdeploy.predictor.artifacts import (
    IMAGE_ENCODER,
    MASK_DECODER,
    Picture,
    open_picture,
    parts_of,
    run_pictures,
)
from vitdeploy.predictor.engine import Closing, SharedEngine
from vitdeploy.predictor.everything import EverythingOptions, FoundMask, find_everything
from vitdeploy.prompts import Prompt, best_masks, prompt_feeds, prompt_from_arrays
from vitdeploy.runner import Feeds
from vitdeploy.targets import load_target

_EXPECTED = (
    "this bundle segments what is pointed at: call set_image(image) once, then "
    "predict(points, labels, box)"
)


class MaskPrediction(NamedTuple):
    """Masks for one prompt; can be unpacked as segment-anything's can."""

    masks: NDArray[np.bool_]
    """(M, height, width) of the picture; True is inside."""
    scores: NDArray[np.float32]
    """(M,) IoU with the true mask, as the model predicts it."""
    low_res_logits: NDArray[np.float32]
    """(M, h, w) as `mask_input` of a later prompt takes it; above 0 is inside."""


class Decoded(NamedTuple):
    """All that the mask decoder gives for several prompts."""

    logits: NDArray[np.float32]
    """(P, M, height, width) at the picture's size; above 0 is inside."""
    scores: NDArray[np.float32]
    """(P, M) predicted IoU."""
    low_res_logits: NDArray[np.float32]
    """(P, M, h, w)."""
    point_labels: NDArray[np.float32]
    """(P, N) that the decoder was fed with."""


@dataclass(frozen=True)
class _Picture:
    """The picture that prompts are on."""

    embeddings: Feeds
    """What the decoder reads of the encoder's outputs."""
    size: tuple[int, int]
    """Height and width in pixels."""


class MaskPredictor(Closing):
    """Runs a bundle's image encoder and mask decoder; a context manager, or call `close`.

    Threads may prompt one picture together. `set_image` changes the picture for all of them, so
    threads with pictures of their own need a predictor each.
    """

    def __init__(
        self, bundle: str | Path, target: str | None = None, threads: int | None = None
    ) -> None:
        """Open both engines; the arguments and what is raised are those of `load`."""
        loaded = load_bundle(Path(bundle))
        parts = parts_of(loaded, target)
        missing = [part for part in (IMAGE_ENCODER, MASK_DECODER) if part not in parts]
        if len(missing) == 2:
            raise UsageError(
                f"bundle '{bundle}' has no mask decoder, so nothing can be pointed at; open it "
                "with vitdeploy.load or Predictor."
            )
        if missing:
            raise DataError(f"bundle '{bundle}' has no part '{missing[0]}'; export it again.")
        encoder, decoder = parts[IMAGE_ENCODER], parts[MASK_DECODER]
        self.target = encoder.target
        self.preprocess = Preprocess.from_dict(loaded.manifest.preprocess)
        self.masks_per_prompt, *mask_size = _low_res_shape(decoder)
        """4: the mask for a clear prompt, then three for an ambiguous one; or 1."""
        self._mask_size = (mask_size[0], mask_size[1])
        self._pixels = encoder.inputs[0]
        self._decoder_inputs = [tensor.name for tensor in decoder.inputs]
        self._picture: _Picture | None = None
        with ExitStack() as opened:
            runtime = load_target(self.target)
            self._encoder = SharedEngine(runtime.open(encoder, threads))
            opened.callback(self._encoder.close)
            self._decoder = SharedEngine(runtime.open(decoder, threads))
            opened.callback(self._decoder.close)
            self._engines = opened.pop_all()

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels of the picture that was set.

        Raises:
            UsageError: none was.
        """
        return self._require_picture().size

    def warm_up(self) -> None:
        """Run both engines once on a grey picture: the first run allocates and is slower."""
        height, width = self.preprocess.size
        earlier = self._picture
        self.set_image(np.full((height, width, 3), 128, np.uint8))
        self.predict([(width / 2, height / 2)])
        self._picture = earlier

    def set_image(self, image: Picture) -> "MaskPredictor":
        """Run the image encoder once and return self; prompts are on this picture from now on.

        Args:
            image: file, PIL image, or array (height, width, 3) uint8, R, G, B.

        Raises:
            DataError: the file is missing or no image, or the array is another.
        """
        opened = open_picture(image)
        pixels = prepare(opened, self.preprocess)[None]
        outputs = run_pictures(self._encoder, self._pixels, pixels)
        embeddings = {n: v for n, v in outputs.items() if n in self._decoder_inputs}
        self._picture = _Picture(embeddings, (opened.height, opened.width))
        return self

    def predict(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        *,
        mask_input: ArrayLike | None = None,
        multimask: bool = False,
    ) -> MaskPrediction:
        """Return the mask of one object, or with `multimask` three for an ambiguous prompt.

        Without `multimask` it is the mask that SAM was trained to give for a clear prompt (a box,
        several points), else the best of the three by its predicted IoU.

        Args:
            points: (N, 2) x and y in pixels of the picture.
            labels: (N,) 1 inside the object, 0 outside; all inside where None.
            box: (4,) left, top, right and bottom in pixels of the picture.
            mask_input: (h, w) or (1, h, w) `low_res_logits` of an earlier prediction, to refine.
            multimask: return three masks.

        Raises:
            UsageError: no picture is set, or the prompt is empty, malformed or outside of it.
        """
        if isinstance(points, str | Path | Image.Image):
            raise UsageError(f"predict got a picture where points belong; {_EXPECTED}.")
        prompt = prompt_from_arrays(points, labels, box)
        decoded = self.decode([prompt], None if mask_input is None else np.asarray(mask_input))
        if multimask:
            chosen = self._all_of_an_ambiguous_prompt()
        else:
            chosen = best_masks(decoded.scores, decoded.point_labels).tolist()
        return MaskPrediction(
            decoded.logits[0, chosen] > 0,
            decoded.scores[0, chosen],
            decoded.low_res_logits[0, chosen],
        )

    def everything(self, options: EverythingOptions | None = None) -> tuple[FoundMask, ...]:
        """Return the masks found from a grid of points, best first; see `everything`.

        Raises:
            UsageError: no picture is set.
        """
        return find_everything(self, options or EverythingOptions())

    def decode(
        self, prompts: Sequence[Prompt], mask_input: NDArray[np.float32] | None = None
    ) -> Decoded:
        """Return all masks of several prompts, run together; for callers who choose themselves.

        Prompts with fewer points than others are padded, which may change their masks a little.

        Raises:
            UsageError: no picture is set, a prompt lies outside of it, or `mask_input` is of
                another size.
        """
        picture = self._require_picture()
        feeds = {**prompt_feeds(prompts, picture.size, self.preprocess, self._mask_size)}
        if mask_input is not None:
            feeds["mask_input"] = self._earlier_mask(mask_input)
            feeds["has_mask_input"] = np.ones(1, np.float32)
        given: Feeds = {**picture.embeddings, **feeds}
        outputs = self._decoder({name: given[name] for name in self._decoder_inputs})
        low = outputs["low_res_masks"]
        # TensorRT's decoders have no output whose size follows from an input
        logits = outputs.get("masks")
        if logits is None:
            logits = masks_at_picture(low, picture.size, self.preprocess)
        return Decoded(logits, outputs["iou_predictions"], low, feeds["point_labels"])

    def predict_many(self, images: object) -> NoReturn:
        """Refuse: this model takes one picture at a time, and prompts.

        Raises:
            UsageError: always; names what to call.
        """
        raise UsageError(f"{_EXPECTED}.")

    def close(self) -> None:
        """Free both engines once the runs under way are done; later calls are errors."""
        self._engines.close()

    def _require_picture(self) -> _Picture:
        picture = self._picture
        if picture is None:
            raise UsageError("no picture is set; call set_image(image) before predict.")
        return picture

    def _all_of_an_ambiguous_prompt(self) -> list[int]:
        if self.masks_per_prompt == 1:
            raise UsageError(
                "this bundle's decoder gives one mask a prompt; leave multimask out to get it."
            )
        return list(range(1, self.masks_per_prompt))

    def _earlier_mask(self, mask: NDArray[np.float32]) -> NDArray[np.float32]:
        height, width = self._mask_size
        if mask.shape not in ((height, width), (1, height, width)):
            raise UsageError(
                f"mask_input is {mask.shape}; allowed: {(height, width)}, one mask of the "
                "low_res_logits of an earlier prediction."
            )
        return mask.astype(np.float32).reshape(1, 1, height, width)


def _low_res_shape(decoder: Artifact) -> tuple[int, int, int]:
    """Return masks a prompt, height and width of a low-resolution mask."""
    shapes = {tensor.name: tensor.shape for tensor in decoder.outputs}
    masks, height, width = shapes.get("low_res_masks", ())[1:] or ("?", "?", "?")
    if not (isinstance(masks, int) and isinstance(height, int) and isinstance(width, int)):
        raise DataError(
            f"'{decoder.path.name}' has no output low_res_masks of a fixed size; export it again."
        )
    return masks, height, width
