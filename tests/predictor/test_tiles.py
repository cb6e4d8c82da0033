"""A predictor whose bundle says that pictures are cut."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiny_vit_graph
from tests.predictor.bundles import PREPROCESS, write_classifier_bundle
from vitdeploy.data import Preprocess, prepare
from vitdeploy.predictor import Predictor
from vitdeploy.targets.onnx import runner_from_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's bundle, whose manifest asks for up to 6 tiles of its 16 pixels."""
    path = write_classifier_bundle(tmp_path_factory.mktemp("tiled") / "bundle")
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest["tiling"] = {"tile_size": 16, "max_tiles": 6, "thumbnail": True}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


def test_every_tile_and_the_thumbnail_are_run(bundle: Path):
    values = np.random.default_rng(2).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    picture = Image.fromarray(values)  # two by three tiles as it is, nothing is resized
    with Predictor(bundle, "onnx") as predictor:
        found, small = predictor.predict_many([picture, picture.crop((0, 0, 16, 16))])
    assert found.tiles == (2, 3)
    assert found.classes == ()
    assert found.outputs["logits"].shape == (7, 5)
    plain = Preprocess(PREPROCESS.size, PREPROCESS.mean, PREPROCESS.std)
    tiles = [
        picture.crop((left, top, left + 16, top + 16)) for top in (0, 16) for left in (0, 16, 32)
    ]
    tiles.append(picture.resize((16, 16), Image.Resampling.BICUBIC))
    with runner_from_model(tiny_vit_graph()) as runner:
        pixels = np.stack([prepare(tile, plain) for tile in tiles])
        expected = runner({"pixel_values": pixels})["logits"]
    # the same graph in one batch: rounding of sums alone
    np.testing.assert_allclose(found.outputs["logits"], expected, rtol=1e-4, atol=1e-5)
    # one tile fills this picture, so nothing follows it
    assert small.tiles == (1, 1)
    np.testing.assert_allclose(small.outputs["logits"], expected[:1], rtol=1e-4, atol=1e-5)


def test_few_tiles_at_a_time_give_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(3).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    with Predictor(bundle, "onnx") as predictor:
        together = predictor.predict(values)
        monkeypatch.setattr(Predictor, "_batch_size", 2)
        apart = predictor.predict(values)
    assert together.tiles == (1, 2)
    np.testing.assert_allclose(
        together.outputs["logits"], apart.outputs["logits"], rtol=1e-4, atol=1e-5
    )
