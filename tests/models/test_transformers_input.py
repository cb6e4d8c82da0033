"""preprocessor_config.json to `Preprocess`."""

import math
from types import SimpleNamespace

import pytest

from vitdeploy.errors import ModelError
from vitdeploy.models.transformers_input import preprocess_from_config

CONFIG = SimpleNamespace(image_size=384)
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def test_without_a_file_imagenet_is_assumed_and_noted():
    preprocess, notes = preprocess_from_config(CONFIG, None, None)
    assert preprocess.size == (384, 384)
    assert preprocess.mean == (0.485, 0.456, 0.406)
    assert "assumed" in notes[0]


def test_a_squashing_processor_as_of_vit():
    fields = {"size": {"height": 224, "width": 224}, "resample": 2, **HALF}
    preprocess, notes = preprocess_from_config(CONFIG, fields, None)
    assert (preprocess.size, preprocess.crop_mode) == ((224, 224), "squash")
    assert (preprocess.interpolation, preprocess.mean) == ("bilinear", (0.5, 0.5, 0.5))
    assert notes == ()


@pytest.mark.parametrize("edge", [224, 235, 248, 256, 292])
def test_a_cropping_processor_as_of_dinov2(edge):
    fields = {
        "size": {"shortest_edge": edge},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
    }
    preprocess, _ = preprocess_from_config(CONFIG, fields, None)
    assert (preprocess.size, preprocess.crop_mode) == ((224, 224), "center")
    assert preprocess.interpolation == "bicubic"
    assert math.floor(224 / preprocess.crop_pct) == edge  # what `prepare` resizes to


def test_numbers_as_sizes_and_no_normalisation():
    fields = {"size": 64, "do_normalize": False}
    preprocess, _ = preprocess_from_config(CONFIG, fields, 128)
    assert preprocess.size == (128, 128)
    assert (preprocess.mean, preprocess.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 224, "width": 112}}, "only square"),
        ({"size": "large"}, "only square"),
        ({"size": 224, "resample": 9}, "allowed: 0 to 5"),
        ({"size": 224, "image_mean": [0.5]}, "three numbers"),
    ],
)
def test_what_is_not_understood_is_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        preprocess_from_config(CONFIG, fields, None)
