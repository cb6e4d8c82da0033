from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import ImageLoader, ImageSet, Preprocess, load_batches, open_image, prepare
from vitdeploy.errors import DataError

PREPROCESS = Preprocess((6, 4))


@pytest.fixture
def images(tmp_path):
    """Return a function that writes `count` small images and returns their set."""

    def write(count: int, labels=None) -> ImageSet:
        rng = np.random.default_rng(0)
        paths = []
        for index in range(count):
            paths.append(tmp_path / f"{index:03d}.png")
            Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(paths[-1])
        return ImageSet("mine", tuple(paths), labels, (), "user")

    return write


def damage(image_set: ImageSet, *indices: int) -> None:
    for index in indices:
        path = image_set.paths[index]
        path.write_bytes(path.read_bytes()[:60])


def test_length_and_labels_must_agree(images):
    assert len(images(3)) == 3
    with pytest.raises(DataError, match="'mine' has 3 images but 2 labels; give one label per"):
        images(3, (0, 1))


# --- sample


def test_stratified_sample_has_every_class_in_proportion(images):
    labels = (0,) * 20 + (1,) * 10 + (2,)
    whole = images(31, labels)
    assert set(whole.sample(3, 0).labels) == {0, 1, 2}
    assert Counter(whole.sample(15, 0).labels) == {0: 9, 1: 5, 2: 1}
    drawn = whole.sample(15, 1)
    for path, label in zip(drawn.paths, drawn.labels, strict=True):
        assert labels[int(path.stem)] == label


@pytest.mark.parametrize("labels", [None, (0, 1) * 10])
def test_sample_follows_its_seed(images, labels):
    whole = images(20, labels)
    assert whole.sample(8, 1) == whole.sample(8, 1)
    assert whole.sample(8, 1) != whole.sample(8, 2)
    assert len(set(whole.sample(8, 1).paths)) == 8
    assert whole.sample(8, 1).paths == whole.sample(12, 1).paths[:8]


def test_sample_of_all_is_the_set_itself(images):
    whole = images(4, (1, 0, 1, 0))
    assert whole.sample(4, 0) is whole
    assert whole.sample(9, 0) is whole


@pytest.mark.parametrize("count", [0, -1])
def test_sample_of_nothing_is_refused(images, count):
    with pytest.raises(DataError, match=f"cannot draw {count} images of 'mine': ask for at least"):
        images(4).sample(count, 0)


# --- digest


def test_digest_depends_on_content_and_labels_alone(images, tmp_path):
    whole = images(3, (0, 1, 2))
    backwards = ImageSet("other", whole.paths[::-1], (2, 1, 0), (), "packaged")
    assert backwards.digest() == whole.digest()
    moved = [path.rename(tmp_path / f"moved{path.name}") for path in whole.paths]
    same = ImageSet("mine", tuple(moved), (0, 1, 2), (), "user")
    assert same.digest() == backwards_digest_of(same)
    relabelled = ImageSet("mine", tuple(moved), (0, 2, 1), (), "user")
    unlabelled = ImageSet("mine", tuple(moved), None, (), "user")
    fewer = ImageSet("mine", tuple(moved[:2]), (0, 1), (), "user")
    digests = {s.digest() for s in (same, relabelled, unlabelled, fewer)}
    assert len(digests) == 4
    before = same.digest()
    moved[0].write_bytes(moved[0].read_bytes() + b"\0")
    assert same.digest() != before


def backwards_digest_of(image_set: ImageSet) -> str:
    labels = image_set.labels[::-1]
    return ImageSet("b", image_set.paths[::-1], labels, (), "user").digest()


def test_digest_of_a_missing_file_is_refused(images):
    whole = images(2)
    whole.paths[1].unlink()
    with pytest.raises(DataError, match=r"001.png: cannot be read \(No such file"):
        whole.digest()


# --- open


def test_open_image_takes_a_path_a_string_or_a_picture(images):
    path = images(1).paths[0]
    with Image.open(path) as picture:
        for source in (path, str(path), picture):
            assert open_image(source).tobytes() == picture.tobytes()
    assert open_image(Image.new("L", (3, 2))).mode == "RGB"


def test_open_image_takes_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_unreadable_files_are_named(images, tmp_path):
    whole = images(2)
    damage(whole, 0)
    with pytest.raises(DataError, match=r"000\.png: damaged or unreadable image \("):
        whole.open(0)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png: not an image that Pillow can read"):
        open_image(tmp_path / "text.png")
    with pytest.raises(DataError, match=r"lost\.png: there is no such image file; check the path"):
        open_image(tmp_path / "lost.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: cannot read .*more than 8 bits"):
        open_image(tmp_path / "deep.png")


def test_truncated_jpeg_is_unreadable(tmp_path):
    path = tmp_path / "a.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(DataError, match=r"a\.jpg: damaged"):
        open_image(path)


def test_a_bomb_is_unreadable(images, monkeypatch):
    whole = images(1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"000\.png: damaged or unreadable image .*exceeds limit"):
        whole.open(0)


# --- loader


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_batches_hold_every_image_once_in_order(images, batch_size):
    whole = images(7)
    batches = list(load_batches(whole, PREPROCESS, batch_size))
    assert [len(array) for array, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    arrays = np.concatenate([array for array, _ in batches])
    indices = np.concatenate([chosen for _, chosen in batches])
    assert arrays.shape == (7, 3, 6, 4)
    assert arrays.dtype == np.float32
    assert indices.tolist() == list(range(7))
    assert indices.dtype == np.int64
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(array, prepare(whole.open(index), PREPROCESS))


def test_up_to_five_percent_unreadable_is_skipped_and_listed(images):
    whole = images(40)
    damage(whole, 3)
    whole.paths[17].write_text("no image")
    loader = ImageLoader(whole, PREPROCESS)
    for _ in range(2):  # a second pass starts its list anew
        batches = list(loader.batches(8))
        assert [len(array) for array, _ in batches] == [8, 8, 8, 8, 6]
        indices = np.concatenate([chosen for _, chosen in batches]).tolist()
        assert indices == [i for i in range(40) if i not in (3, 17)]
        assert [entry.index for entry in loader.skipped] == [3, 17]
        assert "017.png: not an image" in loader.skipped[1].reason


def test_more_than_five_percent_unreadable_is_refused(images):
    whole = images(40)
    damage(whole, 3, 17, 30)
    with pytest.raises(DataError, match=r"3 of the first 31 images .*more than 5% of all 40") as e:
        list(ImageLoader(whole, PREPROCESS).batches(8))
    for name in ("003.png", "017.png", "030.png", "Repair or remove them"):
        assert name in str(e.value)


@pytest.mark.parametrize("count", [1, 2])
def test_a_tiny_set_of_bad_images_is_refused(images, count):
    whole = images(count)
    damage(whole, *range(count))
    with pytest.raises(DataError, match="unreadable"):
        list(load_batches(whole, PREPROCESS, 4))


def test_bad_requests_are_refused_at_once(images):
    with pytest.raises(DataError, match="batch size is 0; it must be at least 1"):
        load_batches(images(2), PREPROCESS, 0)
    with pytest.raises(DataError, match="image set 'none' is empty"):
        load_batches(ImageSet("none", (), None, (), "user"), PREPROCESS, 4)
