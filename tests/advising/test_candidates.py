from tests.advising.rows import tried_row
from vitdeploy.advising.candidates import (
    ORIGINAL,
    Candidate,
    all_candidates,
    forecast,
    next_candidate,
    skip_reason,
)


def test_every_combination_is_a_candidate():
    found = all_candidates([ORIGINAL, "half"], ["fp32", "int8"], ["onnx", "openvino"])
    assert len(set(found)) == 8
    assert Candidate("half", "int8", "openvino").name == "half int8 openvino"
    assert Candidate(ORIGINAL, "int8", "onnx").name == "int8 onnx"


def test_fp32_is_tried_first_everywhere_then_what_promises_most():
    waiting = list(all_candidates([ORIGINAL, "half"], ["w4a16", "int8", "fp32"], ["onnx"]))
    order = []
    while waiting:
        chosen = next_candidate(waiting, [], "latency")
        waiting.remove(chosen)
        order.append(chosen.name)
    assert order[:2] == ["fp32 onnx", "half fp32 onnx"]
    assert order[2:] == ["int8 onnx", "half int8 onnx", "w4a16 onnx", "half w4a16 onnx"]


def test_a_forecast_starts_from_fp32_on_the_same_target():
    rows = [tried_row("fp32 onnx", 0, 1.0), tried_row("fp32 openvino", 0, 0.6)]
    slow, fast = Candidate(ORIGINAL, "int8", "onnx"), Candidate(ORIGINAL, "int8", "openvino")
    assert forecast(fast, rows, "latency") < forecast(slow, rows, "latency")
    assert next_candidate([slow, fast], rows, "latency") == fast


def test_a_forecast_learns_from_another_variant():
    rows = [
        tried_row("fp32 onnx", 0, 1.0),
        tried_row("int8 onnx", 0, 1.5),  # INT8 is slow on this machine
        tried_row("half fp32 onnx", 0, 0.5),
    ]
    assert forecast(Candidate("half", "int8", "onnx"), rows, "latency") == 0.75
    waiting = [Candidate("half", "int8", "onnx"), Candidate("half", "fp16", "onnx")]
    assert next_candidate(waiting, rows, "latency").precision == "fp16"


def test_for_size_four_bits_come_first():
    waiting = [Candidate(ORIGINAL, p, "onnx") for p in ("int8", "fp16", "w4a16")]
    assert next_candidate(waiting, [], "size").precision == "w4a16"


def test_a_variant_that_lost_too_much_in_fp32_is_skipped():
    rows = [tried_row("half fp32 onnx", 3.5, 0.5), tried_row("fp32 onnx", 0, 1.0)]
    reason = skip_reason(Candidate("half", "int8", "openvino"), rows, max_drop=1.0)
    assert reason == "half loses 3.50 points in FP32 already, 1 allowed"
    assert skip_reason(Candidate("half", "int8", "openvino"), rows, max_drop=4.0) is None
    assert skip_reason(Candidate(ORIGINAL, "int8", "openvino"), rows, max_drop=1.0) is None
