"""One picture in, classes or features out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import numpy as np
from PIL import Image

from vitdeploy.bundle import load_bundle
from vitdeploy.data import Preprocess, open_image, prepare
from vitdeploy.errors import UsageError
from vitdeploy.models.spec import class_output
from vitdeploy.predictor.artifacts import MASK_DECODER, parts_of, run_pictures
from vitdeploy.runner import Outputs
from vitdeploy.targets import load_target


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

    @property
    def label(self) -> str | None:
        """Return the likeliest class's name."""
        return self.classes[0].label if self.classes else None


class Predictor:
    """Runs a bundle's model on images; a context manager, or call `close`."""

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
        self._runner = load_target(artifact.target).open(artifact, threads)

    def predict(self, image: str | Path | Image.Image) -> Prediction:
        """Return the prediction for one image file or PIL image.

        Raises:
            DataError: the file is missing or no image.
        """
        return self.predict_many([image])[0]

    def predict_many(self, images: Sequence[str | Path | Image.Image]) -> list[Prediction]:
        """Return one prediction per image, run in one batch where the artefact allows."""
        pixels = np.stack([prepare(open_image(image), self.preprocess) for image in images])
        outputs = run_pictures(self._runner, self._input, pixels)
        results = []
        for index in range(len(images)):
            own = {name: np.asarray(value[index]) for name, value in outputs.items()}
            results.append(Prediction(own, self._classes(own.get(str(self._class_output)))))
        return results

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
        """Free the engine."""
        self._runner.__exit__(None, None, None)

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

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
