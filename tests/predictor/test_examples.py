"""The examples of `examples/`, run as they are, where nothing else can be imported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

import vitdeploy
from tests.conftest import tiny_vit_graph
from tests.predictor.bundles import PREPROCESS
from vitdeploy.targets.onnx import runner_from_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GUARD = """
import runpy, sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Guard())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HEAVY = {"vitdeploy", "torch", "timm", "PIL", "transformers", "onnx", "onnx_ir", "scipy", "cv2"}


def run(engine: str, bundle: Path, picture: Path) -> subprocess.CompletedProcess[str]:
    others = HEAVY | ({"onnxruntime", "openvino"} - {engine})
    script = str(EXAMPLES / f"predict_{engine}.py")
    return subprocess.run(
        [sys.executable, "-c", GUARD.format(blocked=others), script, str(bundle), str(picture)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of the model's own size."""
    pixels = np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8)
    np.save(tmp_path / "picture.npy", pixels)
    return tmp_path / "picture.npy"


@pytest.mark.parametrize(("engine", "target"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_an_example_says_what_the_predictor_says(
    bundle: Path, picture: Path, engine: str, target: str
):
    result = run(engine, bundle, picture)
    assert result.returncode == 0, result.stderr
    pixels = (np.load(picture).astype(np.float32) / 255 - PREPROCESS.mean) / PREPROCESS.std
    with runner_from_model(tiny_vit_graph()) as runner:
        feeds = {"pixel_values": pixels.transpose(2, 0, 1)[None].astype(np.float32)}
        shares = softmax(runner(feeds)["logits"][0])
    shown = [f"{'abcde'[i]}: {100 * shares[i]:.1f} %" for i in np.argsort(-shares)]
    assert result.stdout.splitlines() == shown


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_example_refuses_a_picture_of_another_size(bundle: Path, tmp_path: Path, engine: str):
    np.save(tmp_path / "picture.npy", np.zeros((20, 30, 3), np.uint8))
    result = run(engine, bundle, tmp_path / "picture.npy")
    assert result.returncode == 1
    assert "the picture is (20, 30, 3) uint8, the model reads (16, 16, 3) uint8" in result.stderr


@pytest.mark.parametrize(("engine", "target"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_an_example_gives_a_graph_that_prepares_pictures_a_picture_of_any_size(
    baked_bundle: Path, tmp_path: Path, engine: str, target: str
):
    levels = np.random.default_rng(2).integers(0, 256, (21, 37, 3), np.uint8)
    np.save(tmp_path / "picture.npy", levels)
    result = run(engine, baked_bundle, tmp_path / "picture.npy")
    assert result.returncode == 0, result.stderr
    with vitdeploy.load(baked_bundle, target) as predictor:
        best = predictor.predict(levels).classes[0]
    assert result.stdout.splitlines()[0] == f"{best.label}: {100 * best.probability:.1f} %"
