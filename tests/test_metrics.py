import numpy as np
import pytest

from vitdeploy.metrics import METRICS, Comparison, centred_cosines


def compare(metric: str, reference, value, **options):
    arrays = np.asarray(reference, np.float32), np.asarray(value, np.float32)
    return METRICS[metric](Comparison(*arrays, **options))


def test_top1_and_agreement_count_images():
    reference = [[2, 1, 0], [0, 2, 1], [0, 1, 2], [2, 1, 0]]
    value = [[2, 1, 0], [2, 0, 1], [0, 1, 2], [0, 2, 1]]
    labels = np.array([0, 1, 2, 1])
    score = compare("top1", reference, value, labels=labels, are_logits=True)
    assert (score.reference, score.value, score.delta) == (75.0, 75.0, 0.0)
    assert compare("agreement", reference, value, are_logits=True).value == 50.0


def test_classification_metrics_refuse_features_and_missing_labels():
    assert compare("agreement", [[1, 2]], [[1, 2]]) is None
    assert compare("top1", [[1, 2]], [[1, 2]], are_logits=True) is None
    labels = np.array([0])
    assert compare("top5", [[1, 2]], [[1, 2]], are_logits=True, labels=labels) is None


def test_sqnr_against_a_known_noise():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((200, 50))
    noisy = signal + 0.01 * rng.standard_normal((200, 50))
    # 20 log10(1 / 0.01) = 40 dB; 10,000 samples estimate the power to about 0.1 dB.
    assert compare("sqnr_db", signal, noisy).value == pytest.approx(40.0, abs=0.15)


def test_centring_takes_away_what_all_outputs_share():
    rng = np.random.default_rng(0)
    small = rng.standard_normal((20, 30))
    wrong = rng.standard_normal((20, 30))
    assert centred_cosines(100 + small, 100 + small).min() == pytest.approx(1.0)
    # The plain cosine of these would be 0.9999.
    assert abs(centred_cosines(100 + small, 100 + wrong).mean()) < 0.2
    plain = compare("sqnr_db", 100 + small, 100 + wrong).value
    centred = compare("sqnr_db", 100 + small, 100 + wrong, centred=True).value
    assert plain > 35
    assert centred < 0


def test_one_image_cannot_be_centred():
    assert centred_cosines(np.ones((1, 3)), np.ones((1, 3))) is None
    assert compare("cosine_mean", [[1, 2]], [[1, 2]]) is None


def test_exact_outputs():
    same = np.arange(12.0).reshape(3, 4)
    assert compare("sqnr_db", same, same).value == 200.0
    assert compare("max_abs_diff", same, same + 0.5).value == pytest.approx(0.5)


def test_constant_outputs_agree_only_with_constant_outputs():
    constant = np.ones((3, 4))
    assert centred_cosines(constant, constant).min() == 1.0
    assert centred_cosines(constant, constant + np.eye(3, 4)).min() == 0.0
