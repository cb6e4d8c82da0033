from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiny_vit_graph
from tests.predictor.bundles import PREPROCESS
from vitdeploy.data import prepare
from vitdeploy.errors import DataError, UsageError
from vitdeploy.predictor import Prediction, Predictor, load
from vitdeploy.targets.onnx import runner_from_model


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """40 pictures of several sizes."""
    rng = np.random.default_rng(5)
    sizes = [(20 + int(rng.integers(0, 30)), 20 + int(rng.integers(0, 30))) for _ in range(40)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


def logits(predictions: list[Prediction]) -> np.ndarray:
    return np.stack([prediction.outputs["logits"] for prediction in predictions])


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_threads_get_what_each_would_get_alone(
    bundle: Path, pictures: list[Image.Image], target: str
):
    with Predictor(bundle, target, threads=1) as predictor:
        alone = [predictor.predict(picture) for picture in pictures]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(predictor.predict, pictures * 5))
            groups = list(pool.map(predictor.predict_many, [pictures[:7]] * 16))
    # the same engine on the same array: to the bit
    np.testing.assert_array_equal(logits(together), np.tile(logits(alone), (5, 1)))
    assert [p.classes for p in together] == [p.classes for p in alone] * 5
    for group in groups:
        # a batch sums in another order
        np.testing.assert_allclose(logits(group), logits(alone[:7]), rtol=1e-4, atol=1e-5)


def test_predictions_are_those_of_the_graph(bundle: Path, pictures: list[Image.Image]):
    pixels = np.stack([prepare(picture, PREPROCESS) for picture in pictures])
    with runner_from_model(tiny_vit_graph()) as runner:
        expected = runner({"pixel_values": pixels})["logits"]
    with Predictor(bundle) as predictor:
        found = predictor.predict_many(pictures)
    np.testing.assert_allclose(logits(found), expected, rtol=1e-4, atol=1e-5)
    assert [p.classes[0].index for p in found] == expected.argmax(axis=1).tolist()
    assert found[0].label == "abcde"[int(expected[0].argmax())]


def test_many_pictures_are_run_in_batches(
    bundle: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    with Predictor(bundle) as predictor:
        counts = []
        real = predictor._engine.__call__

        class Counting:
            def __call__(self, feeds):
                counts.append(len(feeds["pixel_values"]))
                return real(feeds)

        monkeypatch.setattr(predictor, "_engine", Counting())
        predictor.predict_many(pictures, batch=16)
        assert counts == [16, 16, 8]
        counts.clear()
        assert len(predictor.predict_many(pictures)) == len(pictures)
        assert counts == [32, 8]
        assert predictor.predict_many([]) == []
        with pytest.raises(UsageError, match=r"batch is 0; allowed: 1 and more"):
            predictor.predict_many(pictures, batch=0)
        monkeypatch.undo()


def test_arrays_and_files_are_pictures_too(
    bundle: Path, pictures: list[Image.Image], tmp_path: Path
):
    path = tmp_path / "a.png"
    pictures[0].save(path)
    with Predictor(bundle) as predictor:
        same = [predictor.predict(each) for each in (pictures[0], np.asarray(pictures[0]), path)]
        with pytest.raises(DataError, match=r"\(3, 16, 16\) of float32; allowed: \(height"):
            predictor.predict(np.zeros((3, 16, 16), np.float32))
    np.testing.assert_array_equal(logits(same)[1:], logits(same)[:-1])


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_closed_predictor_says_so(bundle: Path, pictures: list[Image.Image], target: str):
    predictor = load(bundle, target)
    predictor.close()
    predictor.close()
    with pytest.raises(UsageError, match="closed; open the bundle again"):
        predictor.predict(pictures[0])
    with pytest.raises(UsageError, match="closed"), predictor:
        predictor.predict_many(pictures)


def test_closing_waits_for_runs_under_way(bundle: Path, pictures: list[Image.Image]):
    predictor = Predictor(bundle, "openvino", threads=1)

    def ask(picture: Image.Image) -> str:
        try:
            return str(predictor.predict(picture).label)
        except UsageError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(ask, pictures * 10)
        predictor.close()
        told = set(answers)
    assert told <= {*"abcde", "this predictor is closed; open the bundle again."}


def test_warming_up_runs_the_engine_and_changes_nothing(
    bundle: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    sizes = []
    real = Predictor.predict_many

    def counted(self, images, batch=None):
        sizes.append(len(images))
        return real(self, images, batch)

    monkeypatch.setattr(Predictor, "predict_many", counted)
    with load(bundle, warm_up=True) as warm, load(bundle) as cold:
        assert sizes == [1]
        warm.warm_up(batch=4)
        assert sizes == [1, 4]
        found = warm.predict_many(pictures[:3])
        np.testing.assert_array_equal(logits(found), logits(cold.predict_many(pictures[:3])))
