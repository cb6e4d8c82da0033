"""Image in, result out, on whichever engine the bundle was built for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from vitdeploy.bundle import load_bundle
from vitdeploy.data import Preprocess, open_image, prepare
from vitdeploy.errors import DataError, UsageError, suggest
from vitdeploy.models.spec import class_output
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
        """Open the engine.

        Args:
            bundle: folder that `vitdeploy export` wrote.
            target: which of the bundle's targets; the first where None.
            threads: as many as the engine likes where None.

        Raises:
            UsageError: no bundle, or the bundle lacks that target.
            ExportError: the engine cannot load the artefact.
        """
        loaded = load_bundle(Path(bundle))
        artifacts = loaded.artifacts(target)
        if not loaded.artifacts():
            raise DataError(f"bundle '{bundle}' lists no artefact; export it again.")
        if not artifacts:
            known = sorted({artifact.target for artifact in loaded.artifacts()})
            raise UsageError(
                f"bundle '{bundle}' has no target '{target}'; it has "
                f"{', '.join(known)}.{suggest(str(target), known)}"
            )
        artifact = artifacts[0]
        self.target = artifact.target
        self.preprocess = Preprocess.from_dict(loaded.manifest.preprocess)
        self.label_names = loaded.manifest.label_names
        ranks = ((tensor.name, len(tensor.shape)) for tensor in artifact.outputs)
        self._class_output = class_output(loaded.manifest.model.task, ranks)
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
        fixed = self._input.shape[0]
        if not isinstance(fixed, int):
            return self._predictions(self._runner({self._input.name: pixels}), len(images))
        predictions: list[Prediction] = []
        for start in range(0, len(images), fixed):
            chunk = pixels[start : start + fixed]
            filled = np.resize(chunk, (fixed, *chunk.shape[1:]))
            outputs = self._runner({self._input.name: filled})
            predictions += self._predictions(outputs, len(chunk))
        return predictions

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

    def _predictions(self, outputs: Outputs, count: int) -> list[Prediction]:
        results = []
        for index in range(count):
            own = {name: np.asarray(value[index]) for name, value in outputs.items()}
            results.append(Prediction(own, self._classes(own.get(str(self._class_output)))))
        return results

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


def load(bundle: str | Path, target: str | None = None, threads: int | None = None) -> Predictor:
    """Return a `Predictor` of the bundle; see its constructor."""
    return Predictor(bundle, target, threads)
