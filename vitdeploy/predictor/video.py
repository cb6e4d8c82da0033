"""One object followed over the frames of a video, with SAM 2's memory on any engine.

The loop of the paper (arXiv 2408.00714): the first frame is prompted; each later frame attends to
memories of the prompted frame and of the last ones, and is then remembered itself. numpy alone.
"""

from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitdeploy.bundle import load_bundle
from vitdeploy.data import Preprocess, prepare
from vitdeploy.errors import UsageError
from vitdeploy.manifest import TrackingEntry
from vitdeploy.mask_resizing import masks_at_picture
from vitdeploy.predictor.artifacts import (
    IMAGE_ENCODER,
    MASK_DECODER,
    Picture,
    open_picture,
    parts_of,
)
from vitdeploy.predictor.engine import Closing, SharedEngine
from vitdeploy.prompts import prompt_feeds, prompt_from_arrays
from vitdeploy.runner import Feeds, Outputs
from vitdeploy.targets import load_target

MEMORY_ATTENTION, MEMORY_ENCODER = "memory_attention", "memory_encoder"
_PARTS = (IMAGE_ENCODER, MASK_DECODER, MEMORY_ATTENTION, MEMORY_ENCODER)
_NO_OBJECT = -1024.0
"""Logits of a frame that the object is not in."""


class FrameMask(NamedTuple):
    """Where the object is in one frame."""

    mask: NDArray[np.bool_]
    """(height, width) of the frame; True is inside, False everywhere where it is not seen."""
    score: float
    """IoU with the true mask, as the model predicts it."""
    object_score: float
    """Logit of whether the object is in the frame; above 0 it is."""
    low_res_logits: NDArray[np.float32]
    """(h, w)."""


class _Remembered(NamedTuple):
    """One frame, as later frames see it."""

    number: int
    memory: NDArray[np.float32]
    """(1, D, h, w)."""
    pointer: NDArray[np.float32]
    """(1, C)."""


class VideoPredictor(Closing):
    """Follows one object over frames that come one by one; a context manager, or call `close`."""

    def __init__(
        self, bundle: str | Path, target: str | None = None, threads: int | None = None
    ) -> None:
        """Open the four engines; the arguments are those of `load`.

        Raises:
            UsageError: no bundle, not of that target, or without the parts of a video's memory.
            DataError: the bundle lists no artefact.
            ExportError: the engine cannot load an artefact.
        """
        loaded = load_bundle(Path(bundle))
        parts = parts_of(loaded, target)
        tracking = loaded.manifest.tracking
        if tracking is None or any(part not in parts for part in _PARTS):
            raise UsageError(
                f"bundle '{bundle}' has no memory of earlier frames; export a SAM 2 with --video."
            )
        self.tracking: TrackingEntry = tracking
        self.preprocess = Preprocess.from_dict(loaded.manifest.preprocess)
        self._inputs = {n: [t.name for t in parts[n].inputs] for n in _PARTS}
        mask = next(t.shape for t in parts[MASK_DECODER].inputs if t.name == "mask_input")
        self._mask_size = (int(mask[2]), int(mask[3]))
        self._prompted: _Remembered | None = None
        self._recent: deque[_Remembered] = deque(maxlen=max(tracking.most_pointers - 1, 1))
        self._number = 0
        runtime = load_target(parts[IMAGE_ENCODER].target)
        self._engines: dict[str, SharedEngine] = {}
        with ExitStack() as opened:
            for name in _PARTS:
                engine = SharedEngine(runtime.open(parts[name], threads))
                opened.callback(engine.close)
                self._engines[name] = engine
            self._open = opened.pop_all()

    def start(
        self,
        frame: Picture,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
    ) -> FrameMask:
        """Return the mask of the object that the prompt means, and follow it from this frame on.

        Args:
            frame: file, PIL image, or array (height, width, 3) uint8, R, G, B.
            points: (N, 2) x and y in pixels of the frame.
            labels: (N,) 1 inside the object, 0 outside; all inside where None.
            box: (4,) left, top, right and bottom in pixels of the frame.

        Raises:
            DataError: the file is missing or no image, or the array is another.
            UsageError: the prompt is empty, malformed, or outside of the frame.
        """
        opened = open_picture(frame)
        size = (opened.height, opened.width)
        prompt = prompt_from_arrays(points, labels, box)
        feeds = prompt_feeds([prompt], size, self.preprocess, self._mask_size)
        is_ambiguous = int((feeds["point_labels"] >= 0).sum()) == 1
        seen = self._seen(prepare(opened, self.preprocess))
        self._recent.clear()
        self._number = 0
        found, pointer = self._decoded(seen, {**seen, **feeds}, size, is_ambiguous=is_ambiguous)
        self._prompted = self._remembered(seen, found, pointer, is_prompted=True)
        return found

    def track(self, frame: Picture) -> FrameMask:
        """Return where the object is in the next frame.

        Raises:
            DataError: the file is missing or no image, or the array is another.
            UsageError: nothing was started.
        """
        if self._prompted is None:
            raise UsageError("nothing to follow yet; call start(frame, points) first.")
        opened = open_picture(frame)
        size = (opened.height, opened.width)
        self._number += 1
        seen = self._seen(prepare(opened, self.preprocess))
        tracked = self._run(MEMORY_ATTENTION, {**seen, **self._memory(self._prompted)})
        nothing: Feeds = {
            "point_coords": np.zeros((1, 2, 2), np.float32),
            "point_labels": np.full((1, 2), -1, np.float32),
            "mask_input": np.zeros((1, 1, *self._mask_size), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.asarray(size, np.float32),
        }
        embeddings = {**seen, "image_embeddings": tracked["tracked_embeddings"]}
        found, pointer = self._decoded(seen, {**embeddings, **nothing}, size, is_ambiguous=True)
        self._recent.append(self._remembered(seen, found, pointer, is_prompted=False))
        return found

    def close(self) -> None:
        """Free the engines once the runs under way are done; later calls are errors."""
        self._open.close()

    def _seen(self, pixels: NDArray[np.float32]) -> Outputs:
        return self._run(IMAGE_ENCODER, {self._inputs[IMAGE_ENCODER][0]: pixels[None]})

    def _run(self, part: str, feeds: Feeds) -> Outputs:
        return self._engines[part]({name: feeds[name] for name in self._inputs[part]})

    def _memory(self, prompted: _Remembered) -> Feeds:
        """Return what the memory attention reads of earlier frames: old ones first, then new."""
        recent = list(self._recent)
        frames = recent[len(recent) - min(len(recent), self.tracking.most_memories - 1) :]
        ages = [0, *(self._number - frame.number for frame in frames)]
        pointers = [prompted, *reversed(recent)]
        return {
            "memories": np.concatenate([prompted.memory, *(frame.memory for frame in frames)]),
            "memory_ages": np.asarray(ages, np.float32),
            "object_pointers": np.concatenate([frame.pointer for frame in pointers]),
            "pointer_ages": np.asarray([self._number - f.number for f in pointers], np.float32),
        }

    def _decoded(
        self, seen: Outputs, feeds: Feeds, size: tuple[int, int], *, is_ambiguous: bool
    ) -> tuple[FrameMask, NDArray[np.float32]]:
        """Return the mask to show, and the object's pointer (1, C)."""
        outputs = self._run(MASK_DECODER, feeds)
        low, scores = outputs["low_res_masks"][0], outputs["iou_predictions"][0]
        best = 1 + int(np.argmax(scores[1:]))
        chosen = best if is_ambiguous or not self._is_stable(low[0]) else 0
        # a clear prompt's pointer is that of its own mask, also where another is shown
        pointer = outputs["object_pointers"][:, chosen if is_ambiguous else 0]
        object_score = float(outputs["object_scores"][0, 0])
        logits = low[chosen] if object_score > 0 else np.full_like(low[chosen], _NO_OBJECT)
        mask = masks_at_picture(logits[None, None], size, self.preprocess)[0, 0] > 0
        return FrameMask(mask, float(scores[chosen]), object_score, logits), pointer

    def _is_stable(self, logits: NDArray[np.float32]) -> bool:
        delta = self.tracking.stability_delta
        inner, outer = (np.count_nonzero(logits > edge) for edge in (delta, -delta))
        return bool(outer == 0 or inner / outer >= self.tracking.stability_threshold)

    def _remembered(
        self, seen: Outputs, found: FrameMask, pointer: NDArray[np.float32], *, is_prompted: bool
    ) -> _Remembered:
        feeds = {
            **seen,
            "mask": found.low_res_logits[None, None],
            "object_score": np.full((1, 1), found.object_score, np.float32),
            "is_prompted": np.full(1, is_prompted, np.float32),
        }
        return _Remembered(self._number, self._run(MEMORY_ENCODER, feeds)["memory"], pointer)
