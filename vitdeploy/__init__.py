"""From a vision transformer's checkpoint to a checked artefact for an edge device.

The functions do what the commands of the same name do; they return values, raise
`vitdeploy.errors` and never print or exit. Everything is imported when first used, so that
`import vitdeploy` and `vitdeploy --help` cost no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vitdeploy.version import __version__

if TYPE_CHECKING:
    from vitdeploy.bundle import Bundle
    from vitdeploy.checking import check
    from vitdeploy.diagnosis import Diagnosis, diagnose
    from vitdeploy.distilling import distill
    from vitdeploy.models.pruned import load_pruned
    from vitdeploy.pipeline import export, run
    from vitdeploy.predictor import MaskPredictor, Predictor, VideoPredictor, load
    from vitdeploy.profiling import profile
    from vitdeploy.pruning import prune
    from vitdeploy.recipe import Recipe
    from vitdeploy.report import Report

_PLACES = {
    "Bundle": "vitdeploy.bundle",
    "Diagnosis": "vitdeploy.diagnosis",
    "MaskPredictor": "vitdeploy.predictor",
    "Predictor": "vitdeploy.predictor",
    "Recipe": "vitdeploy.recipe",
    "Report": "vitdeploy.report",
    "VideoPredictor": "vitdeploy.predictor",
    "check": "vitdeploy.checking",
    "diagnose": "vitdeploy.diagnosis",
    "distill": "vitdeploy.distilling",
    "export": "vitdeploy.pipeline",
    "load": "vitdeploy.predictor",
    "load_pruned": "vitdeploy.models.pruned",
    "profile": "vitdeploy.profiling",
    "prune": "vitdeploy.pruning",
    "run": "vitdeploy.pipeline",
}

__all__ = [
    "Bundle",
    "Diagnosis",
    "MaskPredictor",
    "Predictor",
    "Recipe",
    "Report",
    "VideoPredictor",
    "__version__",
    "check",
    "diagnose",
    "distill",
    "export",
    "load",
    "load_pruned",
    "profile",
    "prune",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'vitdeploy' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)
