"""The images that flipped come first, then those least alike; masks come with both pictures."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import ImageSet, Preprocess
from vitdeploy.image_sets import Chosen, Source
from vitdeploy.mask_fidelity import WorstMask
from vitdeploy.worst_images import Answers, worst_answers, worst_masks

COUNT, CLASSES = 9, 4


@pytest.fixture
def images(tmp_path):
    paths = []
    for number in range(COUNT):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (64, 32), (20 * number, 0, 0)).save(path)
        paths.append(path)
    labels = tuple(number % CLASSES for number in range(COUNT))
    found = ImageSet("test", tuple(paths), labels, (), "user")
    return Chosen(None, Source(found, Preprocess((8, 8))))


def answers(flipped: tuple[int, ...] = (), noise: tuple[int, ...] = ()) -> Answers:
    reference = 5.0 * np.eye(CLASSES)[np.arange(COUNT) % CLASSES]
    own = reference.copy()
    for number in flipped:
        own[number] = np.roll(own[number], 1)
    for rank, number in enumerate(noise, start=1):
        own[number] += 0.3 * rank * np.array([0.0, 1.0, -1.0, 0.5])
    return Answers(reference, own, are_logits=True)


def test_flipped_images_come_first_then_the_least_alike(images):
    rows = worst_answers("onnx", images, answers(flipped=(3, 7), noise=(1, 2)))
    assert [row.image for row in rows] == ["3.png", "7.png", "2.png", "1.png"]
    assert [(row.reference, row.own, row.truth) for row in rows[:1]] == [
        ("class 3", "class 0", "class 3")
    ]
    assert rows[2].reference == rows[2].own
    assert rows[2].value < rows[3].value < 1


def test_where_nothing_differs_nothing_is_worst(images):
    assert worst_answers("onnx", images, answers()) == []


def test_there_are_never_many(images):
    rows = worst_answers("onnx", images, answers(noise=tuple(range(COUNT))))
    assert len(rows) == 6


def test_outputs_without_classes_have_no_words(images):
    found = answers(noise=(4,))
    (row,) = worst_answers("onnx", images, Answers(found.reference, found.own, are_logits=False))
    assert (row.image, row.reference, row.own, row.truth) == ("4.png", "", "", None)


def test_one_image_has_no_worst(images):
    one = Answers(np.ones((1, 4)), np.zeros((1, 4)), are_logits=True)
    assert worst_answers("onnx", images, one) == []


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_pictures_are_small_and_of_the_right_shape(images):
    (row, *_) = worst_answers("onnx", images, answers(flipped=(3,)))
    assert picture(row.picture).size == (160, 80)
    assert len(row.picture) < 20_000


def test_masks_come_with_both_pictures_the_least_alike_first(images):
    left, right = np.zeros((2, 32, 64), bool)
    left[:, :16], right[:, 16:] = True, True
    found = [WorstMask(n, 0.9 - 0.1 * n, left, right) for n in range(6)]
    rows = worst_masks("onnx", images, found)
    assert [row.image for row in rows] == ["5.png", "4.png", "3.png", "2.png"]
    assert rows[0].reference == "25.0 % of the picture"
    assert rows[0].own == "75.0 %"
    own = np.asarray(picture(rows[0].own_picture)).astype(int)
    height, width = own.shape[:2]
    assert (width, height) == (240, 120)
    # blue is the mask's: right of the first quarter in the artefact's picture alone
    assert own[:, width // 2 :, 2].mean() > 60 > own[:, : width // 8, 2].mean()
