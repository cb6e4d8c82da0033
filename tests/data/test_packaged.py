import shutil
import subprocess
import sys

import pytest

from vitdeploy.data import packaged, packaged_path, packaged_set, scan_images
from vitdeploy.data.packaged import scene_masks
from vitdeploy.errors import DataError


def test_digits_are_labelled_and_photos_are_not():
    digits, photos = packaged_set("digits", "eval"), packaged_set("photos", "calib")
    assert digits.origin == "packaged"
    assert digits.name == "digits/eval"
    assert digits.label_names == tuple("0123456789")
    assert all(int(p.parent.name) == y for p, y in zip(digits.paths, digits.labels, strict=True))
    assert photos.origin == "generic"
    assert photos.name == "photos/calib"
    assert photos.labels is None


@pytest.mark.parametrize("name", ["digits", "photos", "scenes"])
def test_without_a_split_both_parts_come(name):
    both = packaged_set(name)
    assert both.name == name
    assert both.paths == packaged_set(name, "calib").paths + packaged_set(name, "eval").paths


def test_the_copy_inside_a_wheel_goes_first(tmp_path, monkeypatch):
    wheel, checkout = tmp_path / "package" / "calib_data", packaged_path("digits").parent
    monkeypatch.setattr(packaged, "_HOMES", (wheel, checkout))
    assert packaged_path("digits") == checkout / "digits"
    shutil.copytree(checkout / "digits" / "calib" / "3", wheel / "digits" / "calib" / "3")
    assert packaged_path("digits") == wheel / "digits"
    assert set(packaged_set("digits", "calib").labels) == {3}


def test_missing_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "_HOMES", (tmp_path,))
    with pytest.raises(DataError, match=r"'digits/eval' is not part of this .* --calib and --eval"):
        packaged_set("digits", "eval")


def test_unknown_sets_are_refused():
    with pytest.raises(DataError, match="no packaged image set 'imagenet'; there are: digits"):
        packaged_set("imagenet")
    with pytest.raises(DataError, match="'digits' has no split 'train'; there are: calib, eval"):
        packaged_set("digits", "train")


def test_scenes_have_a_mask_for_each_object():
    scenes = packaged_set("scenes", "eval")
    assert (scenes.name, scenes.origin, scenes.labels) == ("scenes/eval", "packaged", None)
    for index, path in enumerate(scenes.paths):
        masks = scene_masks(path)
        width, height = scenes.open(index).size
        assert masks.dtype == bool
        assert masks.shape[1:] == (height, width)
        assert masks.sum(0).max() == 1  # what is hidden is not seen
        assert masks.sum((1, 2)).min() >= 60


def test_pictures_without_masks_are_refused():
    photo = packaged_set("photos", "eval").paths[0]
    with pytest.raises(DataError, match=r"no masks for 'camera_1.jpg': 'camera_1.png' in masks/"):
        scene_masks(photo)


def test_importing_data_imports_no_torch():
    code = "import sys, vitdeploy.data; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packaged_digits_scan_as_a_user_would():
    assert len(scan_images(packaged_path("digits/calib"))) == 300
