"""One picture in, classes or features out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from vitdeploy.bundle import load_bundle
from vitdeploy.data import Preprocess, Tiling, prepare
from vitdeploy.data.baked import PICTURES
from vitdeploy.data.tiling import cut, squashed
from vitdeploy.errors import UsageError
from vitdeploy.models.spec import class_output
from vitdeploy.predictor.artifacts import (
    MASK_DECODER,
    Picture,
    open_picture,
    parts_of,
    run_pictures,
)
from vitdeploy.predictor.engine import Closing, SharedEngine
from vitdeploy.predictor.tiles import run_in_chunks, tiling_from_manifest
from vitdeploy.runner import Outputs
from vitdeploy.targets import load_target

_PIXELS_AT_A_TIME = 8 * 224 * 224
"""A processor is as fast with 8 pictures as with more, which take memory only."""
_LARGEST_BATCH = 32
"""TensorRT's engines are built for no more."""


@dataclass(frozen=True)
class ClassScore:
    """One class and its share of the softmax."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    outputs: Outputs
    """Every output without its batch axis, by name."""
    classes: tuple[ClassScore, ...]
    """The five likeliest classes, best first; empty for a model without logits."""
    tiles: tuple[int, int] | None = None
    """Rows and columns of the tiles a picture was cut into: the outputs then have a first axis of
    tiles, row by row, the thumbnail last where there is more than one. None for a whole picture."""

    @property
    def label(self) -> str | None:
        """Return the likeliest class's name."""
        return self.classes[0].label if self.classes else None


class Predictor(Closing):
    """Runs a bundle's model on images; a context manager, or call `close`.

    Threads may share one: each gets what it would have got alone.
    """

    def __init__(
        self, bundle: str | Path, target: str | None = None, threads: int | None = None
    ) -> None:
        """Open the engine; the arguments and what is raised are those of `load`.

        Raises:
            UsageError: the model segments what is pointed at.
        """
        loaded = load_bundle(Path(bundle))
        parts = parts_of(loaded, target)
        if MASK_DECODER in parts:
            raise UsageError(
                f"bundle '{bundle}' segments what is pointed at; open it with vitdeploy.load or "
                "MaskPredictor."
            )
        artifact = next(iter(parts.values()))
        self.target = artifact.target
        self.preprocess = Preprocess.from_dict(loaded.manifest.preprocess)
        self.label_names = loaded.manifest.label_names
        ranks = ((tensor.name, len(tensor.shape)) for tensor in artifact.outputs)
        self._class_output = class_output(loaded.manifest.model.task, ranks)
        self._task = loaded.manifest.model.task
        self._input = artifact.inputs[0]
        self._tiling = tiling_from_manifest(loaded.manifest)
        self._engine = SharedEngine(load_target(artifact.target).open(artifact, threads))

    def warm_up(self, batch: int = 1) -> None:
        """Run the engine once on grey pictures; the first run of a size allocates and is slower.

        Args:
            batch: how many pictures will come at a time; engines plan for each number anew.
        """
        height, width = self.preprocess.size
        grey = Image.new("RGB", (width, height), (128, 128, 128))
        self.predict_many([grey] * batch, batch)

    def predict(self, image: Picture) -> Prediction:
        """Return the prediction for one image file, PIL image, or array (height, width, 3) uint8.

        Raises:
            DataError: the file is missing or no image, or the array is another.
            UsageError: the predictor is closed.
        """
        return self.predict_many([image])[0]

    def predict_many(self, images: Sequence[Picture], batch: int | None = None) -> list[Prediction]:
        """Return one prediction per image.

        Args:
            images: as for `predict`; as many as you like.
            batch: how many the engine gets at a time, where it was not exported for a fixed
                number; as many as take little memory where None.

        Raises:
            DataError, UsageError: as `predict`; or `batch` is below 1.
        """
        size = self._batch_size if batch is None else batch
        if size < 1:
            raise UsageError(f"batch is {size}; allowed: 1 and more.")
        results = []
        for start in range(0, len(images), size):
            results += self._predicted(images[start : start + size])
        return results

    @property
    def _batch_size(self) -> int:
        height, width = self.preprocess.size
        return min(max(_PIXELS_AT_A_TIME // (height * width), 1), _LARGEST_BATCH)

    def _predicted(self, images: Sequence[Picture]) -> list[Prediction]:
        """Return the predictions for images that the engine gets together."""
        if self._tiling is not None:
            return [self._predicted_in_tiles(image, self._tiling) for image in images]
        opened = [open_picture(image) for image in images]
        if self._input.name == PICTURES:
            return [self._predicted_as_it_is(picture) for picture in opened]
        pixels = np.stack([prepare(picture, self.preprocess) for picture in opened])
        return self._results(run_pictures(self._engine, self._input, pixels))

    def _predicted_as_it_is(self, picture: Image.Image) -> Prediction:
        """Return the prediction for one picture, which the graph resizes and normalises itself."""
        return self._results(run_pictures(self._engine, self._input, np.asarray(picture)[None]))[0]

    def _results(self, outputs: Outputs) -> list[Prediction]:
        """Return what the outputs of several pictures say of each."""
        results = []
        for index in range(len(next(iter(outputs.values())))):
            own = {name: np.asarray(value[index]) for name, value in outputs.items()}
            results.append(Prediction(own, self._classes(own.get(str(self._class_output)))))
        return results

    def _predicted_in_tiles(self, image: Picture, tiling: Tiling) -> Prediction:
        """Return the prediction for one picture that is cut."""
        found = cut(open_picture(image), tiling, self.preprocess)
        whole = squashed(self.preprocess, self.preprocess.size)
        pixels = np.stack([prepare(tile, whole) for tile in found.images])
        outputs = run_in_chunks(self._engine, self._input, pixels, self._batch_size)
        return Prediction(outputs, (), (found.rows, found.columns))

    def set_image(self, image: object) -> NoReturn:
        """Refuse: this model takes no prompts.

        Raises:
            UsageError: always; names what to call.
        """
        raise UsageError(
            f"this bundle's model ('{self._task}') takes pictures and no prompts; call "
            "predict(image) alone."
        )

    def close(self) -> None:
        """Free the engine once the runs under way are done; later calls are errors."""
        self._engine.close()

    def _classes(self, logits: np.ndarray | None) -> tuple[ClassScore, ...]:
        if logits is None:
            return ()
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = shifted / shifted.sum()
        best = np.argsort(-probabilities, kind="stable")[:5]
        return tuple(
            ClassScore(
                int(i),
                self.label_names[i] if i < len(self.label_names) else str(i),
                float(probabilities[i]),
            )
            for i in best
        )
