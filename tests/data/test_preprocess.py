import io
import json

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import CROP_MODES, INTERPOLATIONS, Preprocess, prepare
from vitdeploy.errors import DataError

MEAN, STD = (0.48, 0.5, 0.41), (0.22, 0.31, 0.27)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def timm_array(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    from timm.data import create_transform

    transform = create_transform(
        (3, *preprocess.size),
        is_training=False,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
    )
    return transform(image).numpy()


@pytest.mark.parametrize("crop_mode", sorted({*CROP_MODES} - {"corner"}))
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875, 0.35, 1.1])
def test_prepare_equals_timm(crop_mode, interpolation, crop_pct):
    sources = [(64, 64), (50, 91), (91, 50), (8, 8), (33, 200), (5, 70), (120, 121)]
    for size in [(32, 32), (48, 31), (31, 48), (33, 33)]:
        preprocess = Preprocess(size, MEAN, STD, interpolation, crop_pct, crop_mode)
        for height, width in sources:
            image = picture(height, width)
            ours = prepare(image, preprocess)
            assert ours.shape == (3, *size)
            assert ours.dtype == np.float32
            # the same operations on the same integers in the same order: no tolerance
            np.testing.assert_array_equal(ours, timm_array(image, preprocess))


@pytest.mark.parametrize("source", [(50, 91), (91, 50), (33, 200), (64, 64), (7, 5), (1, 90)])
def test_corner_equals_segment_anythings_preprocessing(source):
    image = picture(*source)
    scale = 64 / max(source)
    rows, columns = (int(length * scale + 0.5) for length in source)
    resized = image.resize((columns, max(rows, 1)), Image.Resampling.BILINEAR)
    pixels = (np.asarray(resized, np.float64) / 255 - MEAN) / STD
    expected = np.zeros((3, 64, 64))
    expected[:, : pixels.shape[0], : pixels.shape[1]] = pixels.transpose(2, 0, 1)
    found = prepare(image, Preprocess((64, 64), MEAN, STD, "bilinear", 1.0, "corner"))
    # float32 against float64, over values below 5
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert (found[:, rows + 1 :] == 0).all()


def test_corner_leaves_no_room_around_the_picture():
    with pytest.raises(DataError, match=r"crop_pct is 0.9; allowed: 1 where crop_mode is corner"):
        Preprocess((64, 64), crop_pct=0.9, crop_mode="corner")


def test_prepare_equals_timm_at_real_size():
    preprocess = Preprocess((224, 224), crop_pct=0.9)
    image = picture(300, 301)
    np.testing.assert_array_equal(prepare(image, preprocess), timm_array(image, preprocess))


def test_prepare_leaves_the_picture_alone():
    image = picture(40, 60)
    before = image.tobytes()
    array = prepare(image, Preprocess((16, 16), MEAN, STD))
    assert image.tobytes() == before
    assert array.flags.c_contiguous
    assert array.flags.writeable


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_prepare_converts_to_rgb_as_pillow(mode):
    image = picture(40, 60)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize((60, 40)))
    else:
        image = image.convert(mode)
    assert image.mode == mode
    preprocess = Preprocess((24, 24), MEAN, STD)
    expected = timm_array(image.convert("RGB"), preprocess)
    np.testing.assert_array_equal(prepare(image, preprocess), expected)


def test_exif_orientation_is_not_applied_as_in_timm():
    image, exif = picture(40, 60), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    opened = Image.open(buffer)
    preprocess = Preprocess((24, 36), MEAN, STD)
    expected = timm_array(opened.convert("RGB"), preprocess)
    np.testing.assert_array_equal(prepare(opened, preprocess), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused_not_clipped(dtype):
    deep = Image.fromarray(np.full((9, 9), 40000, dtype))
    with pytest.raises(DataError, match=r"more than 8 bits .*clipped.*Scale it"):
        prepare(deep, Preprocess((8, 8)))


def test_dict_round_trip_through_json():
    preprocess = Preprocess((24, 36), MEAN, STD, "lanczos", 0.875, "border")
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


def test_from_dict_takes_integers_for_numbers():
    fields = Preprocess((8, 8)).to_dict() | {"mean": [0, 0, 0], "std": [1, 1, 1], "crop_pct": 1}
    preprocess = Preprocess.from_dict(fields)
    assert preprocess.mean == (0.0, 0.0, 0.0)
    assert isinstance(preprocess.crop_pct, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [8]}, r"size is \[8\]; allowed: 2 integers"),
        ({"size": 8}, "size is 8; allowed: 2 integers"),
        ({"size": [8.5, 8]}, "2 integers"),
        ({"size": [True, 8]}, "2 integers"),
        ({"size": [0, 8]}, "at least 1 pixel"),
        ({"mean": [0.5, 0.5]}, "mean is .* 3 numbers"),
        ({"mean": "grey"}, "mean is 'grey'; allowed: 3 numbers"),
        ({"mean": [float("nan"), 0, 0]}, "three finite numbers"),
        ({"std": [0.2, 0, 0.2]}, "std is .* above 0"),
        ({"std": [0.2, 0.2, "0.2"]}, "std is .* 3 numbers"),
        ({"interpolation": "random"}, "interpolation is 'random'; allowed: nearest, bilinear"),
        ({"crop_mode": None}, "crop_mode is 'None'; allowed: center, squash, border, corner"),
        ({"crop_pct": 87.5}, "crop_pct is 87.5; .*0.9, not 90"),
        ({"crop_pct": 0}, "crop_pct is 0.0"),
        ({"crop_pct": "1"}, r"crop_pct is \['1'\]"),
        ({"interpolaton": "bicubic"}, "unknown field 'interpolaton'. Did you mean 'interpolation'"),
    ],
)
def test_from_dict_refuses(change, message):
    fields = Preprocess((8, 8)).to_dict() | change
    with pytest.raises(DataError, match=message):
        Preprocess.from_dict(fields)


def test_from_dict_refuses_missing_fields():
    with pytest.raises(DataError, match="mean, std, interpolation, crop_pct, crop_mode missing"):
        Preprocess.from_dict({"size": [8, 8]})
