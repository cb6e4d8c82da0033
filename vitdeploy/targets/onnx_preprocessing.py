"""Preprocessing as part of an artefact for ONNX Runtime; the graph is `graph.preprocessing`'s."""

import tempfile
from pathlib import Path

import onnx_ir as ir

from vitdeploy.bundle import Artifact
from vitdeploy.data import Preprocess
from vitdeploy.graph.preprocessing import preprocessing_graph, with_preprocessing
from vitdeploy.graph.save import save_model
from vitdeploy.targets.onnx import OPSET, OrtRunner, runner_from_model


def bake(artifact: Artifact, preprocess: Preprocess) -> tuple[Path, ...]:
    """Put `preprocess` in front of the artefact's graph, in its own files; return those.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    folder = artifact.path.parent
    with tempfile.TemporaryDirectory(prefix=".baking-", dir=folder) as place:
        # beside the old files, for the weights are read from those while the new ones are written
        model = with_preprocessing(ir.load(artifact.path), preprocess)
        written = save_model(model, Path(place) / artifact.path.name)
        return tuple(file.replace(folder / file.name) for file in written)


def preprocessing_alone(preprocess: Preprocess, artifact: Artifact) -> OrtRunner:
    """Return a runner of the preprocessing alone, with the artefact's settings."""
    return runner_from_model(preprocessing_graph(preprocess, OPSET), settings=artifact.settings)
