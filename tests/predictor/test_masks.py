from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitdeploy
from tests.models.segment_anything.publisher import image_encoder, mask_decoder
from tests.models.segment_anything.tiny import SIZE
from vitdeploy.bundle import load_bundle
from vitdeploy.data import Preprocess, prepare
from vitdeploy.errors import DataError, UsageError
from vitdeploy.predictor import MaskPredictor, Predictor, load
from vitdeploy.predictor import masks as masks_module
from vitdeploy.prompts import Prompt

HEIGHT, WIDTH = 140, 211
CLEAR = {"points": [(50, 37.5), (150, 90)], "labels": [1, 0]}
AMBIGUOUS = {"points": [(50, 37.5)]}
BOX = {"box": (20, 30, 120, 100)}


@pytest.fixture
def predictor(sam, picture):
    with vitdeploy.load(sam[0]) as opened:
        yield opened.set_image(picture)


def reference(weights, picture, points, labels, mask=None):
    """All masks, scores and low-resolution masks of one prompt, by the plain functions."""
    image = Image.open(picture)
    pixels = prepare(image, Preprocess((128, 128), interpolation="bilinear", crop_mode="corner"))
    # 128 / 211 of the picture, its height rounded to 85 pixels
    scale = np.array([128 / WIDTH, 85 / HEIGHT])
    feeds = {
        "image_embeddings": image_encoder(weights, SIZE, torch.from_numpy(pixels)[None]),
        "point_coords": torch.tensor(np.array([points]) * scale, dtype=torch.float32),
        "point_labels": torch.tensor([labels], dtype=torch.float32),
        "mask_input": torch.zeros(1, 1, 32, 32) if mask is None else torch.tensor(mask)[None],
        "has_mask_input": torch.tensor([float(mask is not None)]),
        "orig_im_size": torch.tensor([float(HEIGHT), float(WIDTH)]),
    }
    return [value.numpy()[0] for value in mask_decoder(weights, SIZE, feeds)]


def assert_same(found, expected, rows):
    logits, scores, low = (value[rows] for value in expected)
    assert found.masks.dtype == np.bool_
    assert found.masks.shape == (len(rows), HEIGHT, WIDTH)
    # float32 sums in another order, over logits of size 1: pixels that close may fall either way
    clear = np.abs(logits) > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found.masks[clear], (logits > 0)[clear])
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    np.testing.assert_allclose(found.low_res_logits, low, atol=1e-4)


@pytest.mark.parametrize("target", ["onnx", "openvino", "trt"])
def test_prompts_give_the_references_masks_on_every_engine(sam, picture, target):
    bundle, weights = sam
    with vitdeploy.load(bundle, target) as predictor:
        predictor.set_image(picture)
        ambiguous = predictor.predict(**AMBIGUOUS, multimask=True)
        clear = predictor.predict(**CLEAR)
        boxed = predictor.predict(**BOX)
    expected = reference(weights, picture, [(50, 37.5), (0, 0)], [1, -1])
    assert_same(ambiguous, expected, [1, 2, 3])
    places = [(50, 37.5), (150, 90), (0, 0)]
    assert_same(clear, reference(weights, picture, places, [1, 0, -1]), [0])
    assert_same(boxed, reference(weights, picture, [(20, 30), (120, 100)], [2, 3]), [0])


def test_the_decoder_of_trt_gives_no_masks_of_its_own(sam):
    (decoder,) = load_bundle(sam[0]).artifacts("trt", "mask_decoder")
    assert [tensor.name for tensor in decoder.outputs] == ["iou_predictions", "low_res_masks"]
    assert "orig_im_size" not in [tensor.name for tensor in decoder.inputs]


def test_one_mask_of_an_ambiguous_prompt_is_the_best_of_the_three(predictor):
    best = predictor.predict(**AMBIGUOUS)
    three = predictor.predict(**AMBIGUOUS, multimask=True)
    choice = int(three.scores.argmax())
    np.testing.assert_array_equal(best.masks[0], three.masks[choice])
    assert best.scores.tolist() == [three.scores[choice]]


def test_an_earlier_mask_refines(sam, picture, predictor):
    first = predictor.predict(**AMBIGUOUS)
    _, _, low = predictor.predict(**CLEAR, mask_input=first.low_res_logits)
    expected = reference(
        sam[1], picture, [(50, 37.5), (150, 90), (0, 0)], [1, 0, -1], first.low_res_logits
    )
    np.testing.assert_allclose(low, expected[2][:1], atol=1e-4)
    again = predictor.predict(**CLEAR, mask_input=first.low_res_logits[0])
    np.testing.assert_array_equal(again.low_res_logits, low)
    assert np.abs(predictor.predict(**CLEAR).low_res_logits - low).max() > 0.1


def test_the_picture_is_encoded_once(predictor, picture, monkeypatch):
    runs = []
    encode = predictor._encoder.__class__.__call__

    def counted(runner, feeds):
        runs.append("pixel_values" in feeds)
        return encode(runner, feeds)

    monkeypatch.setattr(predictor._encoder.__class__, "__call__", counted)
    predictor.set_image(picture)
    for _ in range(3):
        predictor.predict(**AMBIGUOUS)
    assert runs == [True, False, False, False]


def test_a_file_a_picture_and_an_array_are_the_same(predictor, picture):
    opened = Image.open(picture)
    found = []
    for image in (str(picture), opened, np.asarray(opened)):
        found.append(predictor.set_image(image).predict(**BOX).low_res_logits)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_another_picture_replaces_the_first(predictor, picture):
    before = predictor.predict(**AMBIGUOUS)
    turned = Image.open(picture).transpose(Image.Transpose.ROTATE_90)
    after = predictor.set_image(turned).predict(**AMBIGUOUS)
    assert after.masks.shape == (1, WIDTH, HEIGHT)
    assert np.abs(after.low_res_logits - before.low_res_logits).max() > 1e-2


def test_several_prompts_run_together(predictor):
    prompts = [Prompt(box=(20, 30, 120, 100)), Prompt(box=(5, 5, 200, 60))]
    together = predictor.decode(prompts)
    assert together.logits.shape == (2, 4, HEIGHT, WIDTH)
    for row, prompt in enumerate(prompts):
        alone = predictor.predict(box=prompt.box)
        # sums of another order
        np.testing.assert_allclose(
            together.low_res_logits[row, :1], alone.low_res_logits, atol=1e-5
        )


def test_labels_default_to_inside_and_one_point_may_be_flat(predictor):
    points = np.array([[50, 37.5], [150, 90]], np.float32)
    default = predictor.predict(points)
    given = predictor.predict(points, np.array([1, 1]))
    np.testing.assert_array_equal(default.masks, given.masks)
    flat = predictor.predict(points[0])
    np.testing.assert_array_equal(flat.masks, predictor.predict(points[:1]).masks)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "an empty prompt; give at least one point or a box"),
        ({"points": [(212, 5)]}, r"point \(212, 5\) lies outside .* 211 x 140 .* x in 0..211"),
        ({"points": [(float("nan"), 5)]}, "lies outside the picture"),
        ({"box": (20, 30, 120, 141)}, r"box corner \(120, 141\) lies outside"),
        ({"points": [(5, 5)], "labels": [1, 0]}, r"1 points have the labels \(1, 0\)"),
        ({"points": [(5, 5)], "labels": [2]}, "1 inside the object or 0 outside"),
        ({"points": [(5, 5, 5)]}, "not x and y of each in pixels"),
        ({"box": [(0, 0, 5, 5), (0, 0, 9, 9)]}, "2 boxes in one prompt; allowed: one"),
        ({"box": (1, 2, 3)}, "not left, top, right and bottom"),
        ({"points": "photo.jpg"}, "a picture where points belong; .*set_image"),
        ({"points": [(5, 5)], "mask_input": np.zeros((8, 8))}, r"\(8, 8\); allowed: \(32, 32\)"),
    ],
)
def test_bad_prompts_are_refused(predictor, prompt, message):
    with pytest.raises(UsageError, match=message):
        predictor.predict(**prompt)


def test_a_picture_comes_first(sam):
    with vitdeploy.load(sam[0]) as predictor:
        for ask in (lambda: predictor.predict(**BOX), predictor.everything):
            with pytest.raises(UsageError, match=r"call set_image\(image\) before"):
                ask()
        with pytest.raises(UsageError, match=r"call set_image\(image\) once"):
            predictor.predict_many(["photo.png"])
        with pytest.raises(DataError, match=r"\(4, 4\) of float32; allowed: .* uint8"):
            predictor.set_image(np.zeros((4, 4), np.float32))


def test_a_bundle_opens_as_what_it_is(sam):
    with vitdeploy.load(sam[0]) as predictor:
        assert isinstance(predictor, MaskPredictor)
        assert (predictor.target, predictor.masks_per_prompt) == ("onnx", 4)
    with pytest.raises(UsageError, match=r"open it with vitdeploy.load or\s+MaskPredictor"):
        Predictor(sam[0])
    with pytest.raises(UsageError, match=r"no target 'onx'; it has onnx, openvino, trt\. Did you"):
        vitdeploy.load(sam[0], "onx")


def test_both_engines_are_freed(sam, monkeypatch):
    freed = []
    real = masks_module.load_target("onnx").open

    def watched(artifact, threads):
        runner = real(artifact, threads)
        leave = runner.__exit__

        class Watched:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                freed.append(artifact.part)
                leave(*error)

        return Watched()

    monkeypatch.setattr(masks_module.load_target("onnx"), "open", watched)
    with vitdeploy.load(sam[0]):
        assert freed == []
    assert sorted(freed) == ["image_encoder", "mask_decoder"]


def test_half_a_model_is_refused(sam, tmp_path):
    import json
    import shutil

    shutil.copytree(sam[0], tmp_path / "half")
    file = tmp_path / "half" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["parts"] = [part for part in manifest["parts"] if part["name"] == "mask_decoder"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="has no part 'image_encoder'; export it again"):
        vitdeploy.load(tmp_path / "half")


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_threads_may_prompt_one_picture_together(sam, picture: Path, target: str):
    points = [(10.0 + 12 * number, 8.0 + 9 * number) for number in range(12)]
    with MaskPredictor(sam[0], target, threads=1) as predictor:
        predictor.set_image(picture)
        alone = [predictor.predict([point]) for point in points]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda point: predictor.predict([point]), points * 3))
    for number, found in enumerate(together):
        expected = alone[number % len(points)]
        # the same engine on the same arrays: to the bit
        np.testing.assert_array_equal(found.low_res_logits, expected.low_res_logits)
        np.testing.assert_array_equal(found.masks, expected.masks)


def test_a_closed_mask_predictor_says_so(sam, picture: Path):
    predictor = MaskPredictor(sam[0])
    predictor.set_image(picture)
    predictor.close()
    predictor.close()
    with pytest.raises(UsageError, match="closed; open the bundle again"):
        predictor.predict([(5, 5)])
    with pytest.raises(UsageError, match="closed"):
        predictor.set_image(picture)


def test_warming_up_keeps_the_picture(sam, picture: Path):
    with load(sam[0], warm_up=True) as predictor:
        with pytest.raises(UsageError, match="no picture is set"):
            predictor.predict([(5, 5)])
        before = predictor.set_image(picture).predict([(50, 60)])
        predictor.warm_up()
        assert predictor.picture_size == (140, 211)
        after = predictor.predict([(50, 60)])
    np.testing.assert_array_equal(after.low_res_logits, before.low_res_logits)
