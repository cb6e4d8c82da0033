"""The data and the model that ship with the package are what their READMEs say."""

import hashlib
import json
import runpy

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import Preprocess, load_batches, packaged_path, packaged_set
from vitdeploy.data.packaged import scene_masks

MODEL = packaged_path("digits").parents[1] / "vitdeploy" / "models" / "vit_digits"


def hash_list(name: str) -> dict[str, str]:
    lines = (packaged_path(name) / "SHA256SUMS").read_text().splitlines()
    return {path: digest for digest, path in (line.split("  ") for line in lines)}


def photo_sources() -> set[str]:
    return {path.stem.rsplit("_", 1)[0] for path in packaged_set("photos").paths}


@pytest.mark.parametrize("name", ["digits", "photos", "scenes"])
def test_hash_list_is_complete_and_right(name):
    folder, listed = packaged_path(name), hash_list(name)
    found = {p.relative_to(folder).as_posix(): p for p in folder.glob("*/**/*") if p.is_file()}
    assert found.keys() == listed.keys()
    for relative, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[relative], relative


@pytest.mark.parametrize("name", ["digits", "photos", "scenes"])
def test_no_image_is_in_both_parts(name):
    def contents(split):
        images = packaged_set(name, split)
        return {images.open(index).tobytes() for index in range(len(images))}

    assert contents("calib").isdisjoint(contents("eval"))


def test_counts_and_sizes():
    for split, each in (("calib", 30), ("eval", 50)):
        digits = packaged_set("digits", split)
        assert np.bincount(digits.labels).tolist() == [each] * 10
        assert {digits.open(index).size for index in range(0, len(digits), 40)} == {(8, 8)}
    assert len(packaged_set("photos", "calib")) == 32
    assert len(packaged_set("photos", "eval")) == 12
    photos = packaged_set("photos")
    for index in range(len(photos)):
        width, height = photos.open(index).size
        assert 256 <= max(width, height) <= 384
    size_bytes = sum(path.stat().st_size for path in photos.paths)
    assert size_bytes < 2_500_000


def test_every_source_has_its_licence():
    text = (packaged_path("photos") / "README.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert rows.keys() == {f"{source}_*" for source in photo_sources()}
    for row in rows.values():
        assert any(name in row for name in ("CC0 1.0", "CC BY 2.0", "public domain"))
    digits = (packaged_path("digits") / "README.md").read_text()
    assert "CC BY 4.0" in digits
    assert "10.24432/C50P49" in digits


def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", reason="the source of the digits")
    source = datasets.load_digits()
    digits = packaged_set("digits")
    for path, label in zip(digits.paths, digits.labels, strict=True):
        pixels = np.asarray(Image.open(path)).astype(float)
        np.testing.assert_array_equal(np.round(pixels * 16 / 255), source.images[int(path.stem)])
        assert source.target[int(path.stem)] == label


def test_held_out_photo_areas_overlap_no_calibration_crop():
    made = runpy.run_path(str(packaged_path("make.py")))
    for a in made["EVAL"]:
        for b in made["CALIB"]:
            apart = a.right <= b.left or b.right <= a.left or a.bottom <= b.top or b.bottom <= a.top
            assert a.source != b.source or apart, (a, b)


def test_make_writes_the_sets_again(tmp_path):
    pytest.importorskip("sklearn", reason="a source of the images")
    pytest.importorskip("skimage", reason="a source of the images")
    made = runpy.run_path(str(packaged_path("make.py")))
    made["make_digits"](tmp_path / "digits")
    made["make_photos"](tmp_path / "photos")
    for name in ("digits", "photos"):
        again = tmp_path / name
        assert {
            p.relative_to(again).as_posix() for p in again.glob("*/**/*") if p.is_file()
        } == hash_list(name).keys()
        for path in packaged_set(name).paths:
            ours = np.asarray(Image.open(path)).astype(int)
            made_now = np.asarray(Image.open(again / path.relative_to(packaged_path(name))))
            # another libjpeg may round differently, by a few levels on average under 1
            limit = 0 if name == "digits" else 1
            assert np.abs(ours - made_now).mean() <= limit, path.name


def test_make_draws_the_scenes_again(tmp_path):
    runpy.run_path(str(packaged_path("make.py")))["make_scenes"](tmp_path / "scenes")
    assert len(packaged_set("scenes", "calib")) == 32
    assert len(packaged_set("scenes", "eval")) == 24
    for path in packaged_set("scenes").paths:
        relative = path.relative_to(packaged_path("scenes"))
        ours, made = (
            np.asarray(Image.open(p)).astype(int) for p in (path, tmp_path / "scenes" / relative)
        )
        # another libjpeg may round differently, by a few levels on average under 1
        assert np.abs(ours - made).mean() <= 1, relative
        masks = scene_masks(tmp_path / "scenes" / relative)
        np.testing.assert_array_equal(masks, scene_masks(path))


# --- vit-digits


def test_vit_digits_layout():
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["label_names"] == list("0123456789")
    assert (MODEL / "model.safetensors").stat().st_size < 2_000_000
    card = (MODEL / "README.md").read_text()
    for needed in ("CC BY 4.0", "Apache-2.0", "train_vit_digits.py", "top-1"):
        assert needed in card


def test_vit_digits_reads_held_out_digits():
    import timm
    import torch

    model = timm.create_model(f"local-dir:{MODEL}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    preprocess = Preprocess(
        tuple(config["input_size"][1:]),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"],
        config["crop_pct"],
        config["crop_mode"],
    )
    assert preprocess.size == (32, 32)
    digits = packaged_set("digits", "eval")
    labels = np.asarray(digits.labels)
    with torch.inference_mode():
        hits = [
            model(torch.from_numpy(images)).argmax(1).numpy() == labels[indices]
            for images, indices in load_batches(digits, preprocess, 100)
        ]
    # 97.5 is the promise to users; the model card has the figure itself
    assert 100 * np.concatenate(hits).mean() >= 97.5
