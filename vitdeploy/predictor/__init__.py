"""Pictures in, results out, on whichever engine a bundle was built for.

`classes` has the predictor of models that answer to a picture alone, `masks` the one of models
that segment what is pointed at, `video` the one that follows an object over frames, `everything`
masks without prompts, `overlay` draws masks, `engine` lets threads share an engine, `artifacts`
says which of a bundle's are opened.
"""

from pathlib import Path

from vitdeploy.bundle import load_bundle
from vitdeploy.predictor.classes import ClassScore, Prediction, Predictor
from vitdeploy.predictor.everything import EverythingOptions, FoundMask
from vitdeploy.predictor.masks import MaskPrediction, MaskPredictor
from vitdeploy.predictor.video import FrameMask, VideoPredictor

__all__ = [
    "ClassScore",
    "EverythingOptions",
    "FoundMask",
    "FrameMask",
    "MaskPrediction",
    "MaskPredictor",
    "Prediction",
    "Predictor",
    "VideoPredictor",
    "load",
]


def load(
    bundle: str | Path,
    target: str | None = None,
    threads: int | None = None,
    *,
    warm_up: bool = False,
) -> Predictor | MaskPredictor:
    """Return a `MaskPredictor` for a bundle with a mask decoder, a `Predictor` for any other.

    Args:
        bundle: folder that `vitdeploy export` wrote.
        target: which of the bundle's targets; the first where None.
        threads: as many as the engine likes where None.
        warm_up: run the engine once now, so that the first picture takes no longer than the next.

    Raises:
        UsageError: no bundle, or the bundle lacks that target.
        DataError: the bundle lists no artefact, or half of a model.
        ExportError: the engine cannot load an artefact.
    """
    is_prompted = bool(load_bundle(Path(bundle)).artifacts(part="mask_decoder"))
    predictor = (MaskPredictor if is_prompted else Predictor)(bundle, target, threads)
    if warm_up:
        try:
            predictor.warm_up()
        except BaseException:
            predictor.close()
            raise
    return predictor
