"""A bundle in a second: one product of matrices, with golden tensors and all hashes."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitdeploy.bundle import Artifact, BundleWriter, TensorInfo
from vitdeploy.golden import write_golden
from vitdeploy.manifest import Manifest, ModelEntry

WIDTH = 64
IMAGES = 4
HEAD = Manifest(
    model=ModelEntry(
        name="vit-test", family="vit", source="test", task="classification", weights="random"
    ),
    preprocess={"size": [8, 8]},
)


def make_bundle(path: Path, *, classes: int = 10, error: float = 0.0) -> Path:
    """x (batch, 64) -> logits (batch, classes) for the target onnx.

    Args:
        path: of the bundle.
        classes: 256 bytes of weights each.
        error: noise on the artefact's weights, as a share of them, of which the golden outputs
            know nothing: it then does not compute what it did when it was exported.
    """
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((WIDTH, classes)).astype(np.float32)
    images = rng.standard_normal((IMAGES, WIDTH)).astype(np.float32)
    outputs = {"logits": images @ weights}
    with BundleWriter(path) as writer:
        file = writer.add_file("onnx/model.onnx")
        noise = 1 + error * rng.standard_normal(weights.shape).astype(np.float32)
        onnx.save(_model(weights * noise), file)
        writer.add_artifact(
            Artifact(
                part="model",
                target="onnx",
                precision="fp32",
                path=file,
                sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                bytes=file.stat().st_size,
                parent=None,
                inputs=(TensorInfo("x", ("batch", WIDTH)),),
                outputs=(TensorInfo("logits", ("batch", classes)),),
                settings={},
                files=(file,),
            )
        )
        folder = file.parent.parent
        write_golden(folder, "model", {"x": images}, outputs)
        write_golden(folder, "model.onnx", {}, outputs)
        writer.describe(HEAD)
    return path


def _model(weights: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "test",
        [helper.make_tensor_value_info("x", 1, ["batch", WIDTH])],
        [helper.make_tensor_value_info("logits", 1, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model
