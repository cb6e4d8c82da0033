"""Ship or not, and why."""

import pytest

from tests.report.samples import failing_sample, sample, two_part_sample
from vitdeploy.report import GateRow
from vitdeploy.report.verdict import gate_words, verdict


def test_passed_gates_ship_and_say_what_is_gained():
    found = verdict(sample())
    assert found.ships is True
    assert (found.title, found.summary) == ("Ship it", "Passed: all 3 gates")
    assert found.reasons[0] == (
        "ONNX Runtime in INT8: Top-1 97.78 % (−0.55 points), 1.64× faster, 3.00× smaller"
    )


def test_failed_gates_do_not_ship_and_say_why():
    found = verdict(failing_sample())
    assert found.ships is False
    assert found.summary == "Failed: 2 of 3 gates"
    assert found.reasons[0].startswith("Speed-up on ONNX Runtime: 0.77")
    assert "at least 1.5×" in found.reasons[0]
    assert "the engine cannot run on this machine" in found.reasons[1]


def test_an_export_that_strays_does_not_ship():
    parity = [{**row.model_dump(), "passed": False} for row in sample().parity]
    found = verdict(sample(parity=parity))
    assert found.ships is False
    assert found.summary == "Failed: the export's parity"
    assert "3.10e-06, allowed is 1.00e-04" in found.reasons[0]


def test_without_gates_nobody_decided():
    found = verdict(two_part_sample())
    assert found.ships is None
    assert found.title == "Yours to decide"


def test_random_weights_never_ship():
    model = {**sample().model.model_dump(), "weights": "random"}
    found = verdict(sample(model=model))
    assert found.ships is None
    assert "weights are random" in found.summary


@pytest.mark.parametrize(
    ("name", "limit", "value", "words"),
    [
        ("max_drop_points:onnx:top1", 1.0, 0.55,
         "Loss of Top-1 on ONNX Runtime: 0.55 points, at most 1"),
        ("min_speedup:openvino", 1.5, 2.51, "Speed-up on OpenVINO: 2.51×, at least 1.5×"),
        ("max_latency_ms:trt", 4.0, 5.2, "Latency on TensorRT: 5.2 ms, at most 4 ms"),
        ("golden_sqnr_db:onnx:model", 40.0, 44.2, "golden_sqnr_db:onnx:model: 44.2, limit 40"),
    ],
)  # fmt: skip
def test_gates_in_words(name, limit, value, words):
    assert gate_words(GateRow(name=name, limit=limit, value=value, passed=True)) == words
