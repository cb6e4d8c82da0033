"""The verdict on an engine, against numpy and by hand."""

import math

import numpy as np
import pytest

from vitdeploy.device.onboard.fidelity import is_faithful, score_output, score_row


def rows(array: np.ndarray) -> list[list[float]]:
    return [row.ravel().tolist() for row in array]


def centred_sqnr_db(expected: np.ndarray, seen: np.ndarray) -> float:
    signal = expected - expected.mean(axis=0)
    return float(10 * np.log10((signal**2).sum() / ((expected - seen) ** 2).sum()))


def test_sqnr_is_centred_over_the_images():
    rng = np.random.default_rng(1)
    expected = 100.0 + rng.standard_normal((6, 40))  # a large offset that all images share
    seen = expected + 0.1 * rng.standard_normal((6, 40))
    score = score_output(rows(expected), rows(seen))
    assert score.sqnr_db == pytest.approx(centred_sqnr_db(expected, seen), rel=1e-9)
    assert 15 < score.sqnr_db < 25  # uncentred it would be 60 dB, and hide all
    assert score.max_abs_diff == pytest.approx(np.abs(expected - seen).max())
    cosine = (expected * seen).sum(1) / np.linalg.norm(expected, axis=1)
    assert score.cosine_min == pytest.approx((cosine / np.linalg.norm(seen, axis=1)).min())


def test_one_image_is_compared_as_it_is():
    score = score_output([[3.0, 4.0]], [[3.0, 4.5]])
    assert score.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))


def test_equal_images_are_compared_as_they_are():
    score = score_output([[3.0, 4.0]] * 2, [[3.0, 4.5]] * 2)
    assert score.sqnr_db == pytest.approx(20.0)


def test_equal_outputs_have_no_ratio_and_pass():
    score = score_output([[1.0, 2.0], [3.0, 5.0]], [[1.0, 2.0], [3.0, 5.0]])
    assert score.sqnr_db is None
    assert is_faithful(score, 40.0)
    assert score_row("logits", score, 40.0)["sqnr_db_reason"] == "equal to the golden output"


def test_the_limit_itself_passes_and_below_it_does_not():
    score = score_output([[3.0, 4.0]], [[3.0, 4.5]])  # 20 dB
    assert is_faithful(score, 20.0 - 1e-9)
    assert not is_faithful(score, 20.0 + 1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_single_bad_value_fails_whatever_the_limit(bad: float):
    score = score_output([[1.0, 2.0], [3.0, 5.0]], [[1.0, 2.0], [3.0, bad]])
    assert not is_faithful(score, -1e9)
    row = score_row("logits", score, -1e9)
    assert (row["passed"], row["nonfinite"], row["sqnr_db"]) == (False, 1, None)
    assert "NaN or infinite" in row["sqnr_db_reason"]


def test_noise_on_zeros_fails():
    score = score_output([[0.0, 0.0]], [[0.0, 1.0]])
    assert not is_faithful(score, 0.0)
    assert score_row("y", score, 0.0)["sqnr_db"] is None
    assert score.cosine_min is None


def test_other_shapes_are_no_comparison():
    with pytest.raises(ValueError, match="differ in number or length"):
        score_output([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="differ"):
        score_output([], [])
