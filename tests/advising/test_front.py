import numpy as np

from tests.advising.rows import tried_row
from vitdeploy.advising.front import pareto_front, recommended_reason, recommended_row


def test_the_front_is_what_no_other_beats():
    rng = np.random.default_rng(3)
    rows = [
        tried_row(f"int8 t{i}", float(d), float(c)) for i, (d, c) in enumerate(rng.random((40, 2)))
    ]
    front = pareto_front(rows, "latency")
    # by the definition, pair by pair
    expected = {
        row.name
        for row in rows
        if not any(
            other.drop_points < row.drop_points
            and other.relative_cost("latency") < row.relative_cost("latency")
            for other in rows
        )
    }
    assert {row.name for row in front} == expected
    costs = [row.relative_cost("latency") for row in front]
    assert costs == sorted(costs)


def test_what_was_not_measured_is_not_on_the_front():
    rows = [tried_row("int8 onnx", None, 0.1), tried_row("int8 trt", 0.1, None)]
    assert pareto_front(rows, "latency") == ()
    assert recommended_row(rows, "latency", 1.0) is None
    assert "could be measured" in recommended_reason(rows, "latency", 1.0)


def test_the_cheapest_within_the_limit_is_recommended():
    rows = [
        tried_row("fp32 onnx", 0.0, 1.0),
        tried_row("int8 onnx", 0.8, 0.5),
        tried_row("w4a16 onnx", 2.5, 0.2),
    ]
    assert recommended_row(rows, "size", 1.0).name == "int8 onnx"
    assert recommended_row(rows, "size", 3.0).name == "w4a16 onnx"
    assert recommended_row(rows, "size", 0.1).name == "fp32 onnx"
    assert "50 % of the FP32 reference's size" in recommended_reason(rows, "size", 1.0)


def test_of_two_as_cheap_the_more_faithful_is_recommended():
    rows = [tried_row("int8 onnx", 0.9, 0.500), tried_row("bf16 onnx", 0.1, 0.505)]
    assert recommended_row(rows, "latency", 1.0).name == "bf16 onnx"


def test_nothing_within_the_limit_says_what_came_closest():
    rows = [tried_row("int8 onnx", 1.7, 0.5), tried_row("w4a16 onnx", 4.0, 0.2)]
    assert recommended_row(rows, "latency", 1.0) is None
    reason = recommended_reason(rows, "latency", 1.0)
    assert "int8 onnx with 1.70" in reason
    assert "--max-drop" in reason


def test_nothing_built_is_said():
    assert "nothing could be built" in recommended_reason([], "latency", 1.0)
