"""Preprocessing in a graph, on both engines, beside Pillow's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.bundle import Artifact
from vitdeploy.cpu import cpu_has
from vitdeploy.data import Preprocess, prepare
from vitdeploy.data.baked import PICTURES, prepared_as_baked, unbakeable_reason
from vitdeploy.errors import UnsupportedError
from vitdeploy.targets import load_baker

ENGINES = [("onnx", {}), ("openvino", {"INFERENCE_PRECISION_HINT": "f32"})]
if cpu_has("bf16"):
    ENGINES.append(("openvino", {"INFERENCE_PRECISION_HINT": "bf16"}))
SIZES = [(100, 130), (48, 48), (30, 20), (301, 77), (5, 200), (1, 1)]


def picture(height: int, width: int) -> np.ndarray:
    """Smooth shapes with noise on them."""
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth).astype(int) + rng.integers(-20, 20, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def artifact_with(settings: dict[str, str]) -> Artifact:
    return Artifact("model", "any", "fp32", Path("any"), "", 0, None, (), (), settings, ())


@pytest.mark.parametrize(("target", "settings"), ENGINES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct"), [("center", 0.9), ("center", 1.0), ("squash", 0.875)]
)
def test_pixels_are_those_of_pillow(target, settings, interpolation, crop_mode, crop_pct):
    size = (48, 48) if crop_mode == "center" else (48, 40)
    preprocess = Preprocess(
        size, interpolation=interpolation, crop_mode=crop_mode, crop_pct=crop_pct
    )
    scale = 255 * np.array(preprocess.std)[:, None, None]
    with load_baker(target).preprocessing_alone(preprocess, artifact_with(settings)) as runner:
        for shape in SIZES:
            levels = picture(*shape)
            seen = runner({PICTURES: levels[None]})["pixel_values"][0]
            off = np.abs(seen - prepared_as_baked(levels, preprocess)) * scale
            # halves that round otherwise, one an axis
            assert off.max() < 2.25, shape
            assert off.mean() < 0.35, shape
            if interpolation == "bicubic":
                assert (off > 0.75).mean() < 0.01, shape


def test_a_batch_holds_pictures_of_one_size():
    preprocess = Preprocess((32, 32))
    pair = np.stack([picture(50, 60), picture(60, 50).transpose(1, 0, 2)])
    for target, settings in ENGINES:
        with load_baker(target).preprocessing_alone(preprocess, artifact_with(settings)) as runner:
            together = runner({PICTURES: pair})["pixel_values"]
            apart = [runner({PICTURES: one[None]})["pixel_values"][0] for one in pair]
        np.testing.assert_array_equal(together, np.stack(apart))


def test_rows_first_is_what_pillow_does_with_wide_pictures():
    preprocess = Preprocess((48, 48), crop_pct=0.9)
    levels = picture(100, 160)
    seen = prepared_as_baked(levels, preprocess)
    np.testing.assert_array_equal(seen, prepare(Image.fromarray(levels), preprocess))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"interpolation": "lanczos"}, "its filter is lanczos; bilinear and bicubic can be"),
        ({"crop_mode": "border"}, "its crop mode is border, which pads"),
        ({"crop_mode": "corner"}, "its crop mode is corner, which pads"),
        ({"crop_pct": 1.1}, r"its crop_pct is 1.1, which pads"),
        ({"size": (32, 48)}, "it crops to a rectangle; a square can be"),
        ({}, None),
        ({"size": (32, 48), "crop_mode": "squash"}, None),
    ],
)
def test_what_cannot_be_put_into_a_graph_is_said(fields, reason):
    seen = unbakeable_reason(Preprocess(**{"size": (32, 32), **fields}))
    assert (reason in seen) if reason else seen is None


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_tensorrt_is_refused(target):
    with pytest.raises(UnsupportedError, match=f"'{target}' has no resize with antialiasing"):
        load_baker(target)
