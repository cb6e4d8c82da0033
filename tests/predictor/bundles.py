"""Bundles of a tiny classifier and a tiny Segment Anything, written as a run writes them."""

from pathlib import Path

import onnx_ir as ir

from tests.conftest import tiny_vit_graph
from tests.models.segment_anything.publisher import Weights
from tests.models.segment_anything.tiny import smooth_pictures, write_publisher
from vitdeploy.baking import with_preprocessing
from vitdeploy.bundle import BundleWriter
from vitdeploy.data import Preprocess
from vitdeploy.graph.computed_sizes import without_computed_outputs
from vitdeploy.manifest import Manifest, ModelEntry
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.spec import LoadedModel
from vitdeploy.onnx_export import onnx_from_part
from vitdeploy.targets import BuildRequest, load_target

PREPROCESS = Preprocess((16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), crop_pct=0.8)
"""Of the tiny classifier."""


def write_classifier_bundle(path: Path, *, bakes_preprocessing: bool = False) -> Path:
    """Write the bundle `path` of `tiny_vit_graph` for two targets, its classes a to e."""
    with BundleWriter(path) as writer:
        for target in ("onnx", "openvino"):
            folder = writer.add_file(f"{target}/any").parent
            artifact = _built(target, "model", tiny_vit_graph(), folder)
            if bakes_preprocessing:
                artifact = with_preprocessing(artifact, PREPROCESS)
            writer.add_artifact(artifact)
        entry = ModelEntry(
            name="tiny", family="vit", source="any", task="classification", weights="random"
        )
        labels = tuple("abcde")
        writer.describe(Manifest(model=entry, preprocess=PREPROCESS.to_dict(), label_names=labels))
    return path


def write_sam_bundle(path: Path, targets: tuple[str, ...] = ("onnx",)) -> tuple[Path, Weights]:
    """Write the bundle `path` of a tiny SAM in FP32; return it and the publisher's weights."""
    folder, checkpoint, weights = write_publisher(path.parent / f"{path.name}-model")
    return write_bundle(
        path, load(LoadOptions(str(folder), checkpoint=checkpoint)), targets
    ), weights


def write_bundle(path: Path, loaded: LoadedModel, targets: tuple[str, ...]) -> Path:
    """Write all parts of `loaded` for the targets; batch and prompts dynamic."""
    spec = loaded.spec
    pixels = smooth_pictures(2, spec.preprocess.size[0])
    graphs = {part.name: onnx_from_part(part, pixels, "dynamic", 20) for part in loaded.parts}
    with BundleWriter(path) as writer:
        for target in targets:
            folder = writer.add_file(f"{target}/any").parent
            for name, graph in graphs.items():
                model = without_computed_outputs(graph) if target == "trt" else graph
                writer.add_artifact(_built(target, name, model, folder))
        entry = ModelEntry(
            name=spec.name,
            family=spec.family,
            source=spec.source,
            task=spec.task,
            weights=spec.weights,
        )
        writer.describe(Manifest(model=entry, preprocess=spec.preprocess.to_dict()))
    return path


def _built(target: str, part: str, model: ir.Model, folder: Path):
    request = BuildRequest(part, model, "fp32", folder, parent_sha256=None)
    return load_target(target).build(request)
