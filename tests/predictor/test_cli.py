"""`vitdeploy predict` on a bundle of Segment Anything."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from vitdeploy.cli import exit_code_from
from vitdeploy.errors import DataError, UsageError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(sam, picture, *options):
    return exit_code_from(["predict", str(sam[0]), str(picture), *options])


def test_a_prompt_gives_a_mask_its_figures_and_an_overlay(sam, picture, place, capsys):
    more = ["--label", "1", "--label", "0", "--masks", "out", "--json"]
    assert run(sam, picture, "--point", "50,37.5", "--point", "150,90", *more) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["image"] == str(picture)
    assert entry["overlay"] == "photo-masks.png"
    (row,) = entry["masks"]
    with vitdeploy.load(sam[0]) as predictor:
        expected = predictor.set_image(picture).predict([(50, 37.5), (150, 90)], [1, 0])
    mask = np.asarray(Image.open(place / row["file"]))
    np.testing.assert_array_equal(mask, expected.masks[0])
    rows, columns = np.nonzero(mask)
    assert row["area"] == len(rows)
    assert row["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert row["score"] == pytest.approx(float(expected.scores[0]), abs=1e-6)
    drawn = np.asarray(Image.open(place / "photo-masks.png")).astype(int)
    plain = np.asarray(Image.open(picture)).astype(int)
    assert drawn.shape == plain.shape
    touched = (drawn != plain).any(axis=2)
    assert touched[mask].mean() > 0.95


def test_a_table_is_for_people(sam, picture, place, capsys):
    assert run(sam, picture, "--box", "20,30,120,100", "--multimask", "-o", "a.jpg") == 0
    text = capsys.readouterr().err
    assert "predicted IoU" in text
    assert "overlay: a.jpg" in text
    scores = [line.split("│")[2] for line in text.splitlines() if line.startswith("│")]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True, key=float)
    assert Image.open(place / "a.jpg").size == (211, 140)


def test_everything_says_which_point_found_a_mask(sam, picture, place, capsys):
    loose = ["--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--box-nms-thresh", "0.9"]
    grid = ["--everything", "--points-per-side", "3", *loose, "--masks", "all", "--json"]
    assert run(sam, picture, *grid) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert len(entry["masks"]) == len(list((place / "all").iterdir())) >= 1
    for row in entry["masks"]:
        assert row["point"][0] * 6 / 211 == pytest.approx(round(row["point"][0] * 6 / 211))
        assert 0 <= row["stability"] <= 1


def test_no_mask_at_all_is_an_answer(sam, picture, place, capsys):
    strict = ["--everything", "--points-per-side", "2", "--pred-iou-thresh", "1"]
    assert run(sam, picture, *strict) == 0
    assert "no mask passed the filters; lower --pred-iou-thresh" in capsys.readouterr().err
    np.testing.assert_array_equal(
        np.asarray(Image.open(place / "photo-masks.png")), np.asarray(Image.open(picture))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "segments what is pointed at; say what"),
        (["--point", "5"], "--point '5' is not 2 numbers"),
        (["--point", "a,b"], "--point 'a,b' is not 2 numbers"),
        (["--box", "1,2,3"], "--box '1,2,3' is not 4 numbers"),
        (["--point", "500,5"], "lies outside the picture of 211 x 140"),
        (["--point", "5,5", "--label", "1", "--label", "0"], "1 points have the labels"),
        (["--label", "1"], "an empty prompt; give at least one point"),
        (["--box", "50,5,20,90"], "has no area"),
        (["--everything", "--point", "5,5"], "leave --point and --box out"),
        (["--everything", "--multimask"], "--everything tries all masks"),
        (["--point", "5,5", "--min-area", "9"], "filter what --everything finds; add it"),
        (["--everything", "--points-per-side", "0"], "points_per_side is 0"),
        (["--everything", "--pred-iou-thresh", "88"], "pred_iou_thresh is 88"),
        (["--point", "5,5", "-o", "a.txt"], "names that end with .png"),
        (["--point", "5,5", "-o", "none/a.png"], "is not a folder you may write to"),
        (["--point", "5,5", "--target", "trt-rtx"], "it has onnx, openvino, trt"),
    ],
)
def test_2_bad_options(sam, picture, place, capsys, options, message):
    assert run(sam, picture, *options) == UsageError.exit_code
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert list(place.iterdir()) == []


def test_nothing_is_overwritten_unasked(sam, picture, place, capsys):
    own = place / "mine.png"
    Image.open(picture).save(own)
    before = own.read_bytes()
    for options in (["-o", "mine.png"], ["-o", "mine.png", "--force"]):
        assert run(sam, own, "--point", "5,5", *options) == UsageError.exit_code
    assert own.read_bytes() == before
    assert (
        run(sam, "none.png", "--point", "5,5", "-o", "mine.png", "--force") == DataError.exit_code
    )
    assert own.read_bytes() == before
    (place / "out").mkdir()
    assert run(sam, own, "--point", "5,5", "--masks", "out") == UsageError.exit_code
    assert run(sam, picture, "--point", "5,5", "-o", "mine.png", "--force") == 0
    assert own.read_bytes() != before


def test_7_a_picture_that_is_missing(sam, place, capsys):
    assert run(sam, "none.jpg", "--point", "5,5") == DataError.exit_code
    assert "there is no such image file" in capsys.readouterr().err


def test_several_pictures_have_no_common_prompt(sam, picture, place, capsys):
    assert run(sam, picture, str(picture), "--point", "5,5") == UsageError.exit_code
    assert "run the command once for each" in capsys.readouterr().err


def test_masks_need_no_torch(sam, picture, place):
    code = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision', 'timm', 'transformers'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "from vitdeploy.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = ["predict", str(sam[0]), str(picture), "--everything", "--points-per-side", "2"]
    subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True)
    assert (place / "photo-masks.png").exists()
