"""What each command shows has the figures; names are shown as they are."""

import json

import pytest

from tests.report.samples import failing_sample, sample
from vitdeploy import display
from vitdeploy.predictor import ClassScore, Prediction
from vitdeploy.report import Report


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def row(text: str, label: str) -> list[str]:
    """The cells of the table row that begins with `label`."""
    line = next(line for line in text.splitlines() if line.startswith(f"│ {label} "))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_a_report_is_a_table_of_fp32_against_the_targets(capsys: pytest.CaptureFixture[str]):
    display.print_report(sample(stamps=[]), "out")
    text = shown(capsys)
    assert text.startswith("vit-digits: FP32 against int8 on 360 images")
    assert row(text, "precision") == ["fp32", "int8", "int8"]
    assert row(text, "top-1, %") == ["98.33", "97.78 (-0.55)", "98.06 (-0.27)"]
    assert row(text, "agreement, %") == ["100.00", "99.17", "99.44"]
    assert row(text, "centred cosine, mean") == ["1.0000", "0.9987", "0.9990"]
    assert row(text, "SQNR, dB") == ["-", "27.40", "29.10"]
    assert row(text, "size, MB") == ["1.26", "0.42", "0.60"]
    assert row(text, "latency p50, ms") == ["1.21", "0.7400", "0.4820"]
    assert row(text, "latency p99, ms") == ["1.71", "1.02", "-"]
    assert row(text, "speed-up") == ["1.00x", "1.64x", "2.51x"]
    assert row(text, "min_speedup:openvino") == ["1.50", "2.51", "passed"]
    assert "note: The evaluation set is small" in text
    assert "bundle: out   report: out/report.html" in text


def test_what_was_not_measured_is_a_dash_and_failed_gates_stand_out(
    capsys: pytest.CaptureFixture[str],
):
    display.print_report(failing_sample(), None)
    text = shown(capsys)
    assert "[random-weights, calibration: synthetic]" in text
    assert row(text, "latency p50, ms") == ["1.21", "1.57", "-"]
    assert row(text, "speed-up") == ["1.00x", "0.77x", "-"]
    assert row(text, "min_speedup:openvino") == ["1.50", "-", "FAILED"]
    assert "use it for its size only" in text
    assert "bundle:" not in text


def test_markup_in_a_name_is_not_interpreted(capsys: pytest.CaptureFixture[str]):
    model = {**sample().model.model_dump(), "name": "[red]x[/red]"}
    display.print_report(sample(model=model), "[bold]out")
    display.print_check(sample(model=model))
    text = shown(capsys)
    assert text.count("[red]x[/red]") == 2
    assert "bundle: [bold]out " in text


def test_a_check_shows_its_metrics_and_gates(capsys: pytest.CaptureFixture[str]):
    display.print_check(sample())
    text = shown(capsys)
    assert "hashes match" in text
    assert "│ openvino │ model │ logits │ sqnr_db " in text
    assert "max_drop_points:onnx:top1" in text


def test_predictions_name_classes_or_shapes(capsys: pytest.CaptureFixture[str]):
    import numpy as np

    classes = tuple(ClassScore(i, f"class {i}", 0.5 / (i + 1)) for i in range(5))
    logits = Prediction({"logits": np.zeros(5)}, classes)
    features = Prediction({"pooler_output": np.zeros(8)}, ())
    display.print_predictions([("a.png", logits), ("b.png", features)], as_json=False)
    text = shown(capsys)
    assert row(text, "a.png") == ["class 0 50.0 %, class 1 25.0 %, class 2 16.7 %"]
    assert row(text, "b.png") == ["pooler_output (8)"]
    display.print_predictions([("a.png", logits), ("b.png", features)], as_json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert [score["label"] for score in first["classes"]] == [f"class {i}" for i in range(5)]
    assert second["outputs"] == {"pooler_output": [8]}


def test_a_diff_shows_both_sides(capsys: pytest.CaptureFixture[str]):
    from vitdeploy.report import diff

    after: Report = sample(size_bytes={"reference": 1_262_550, "onnx": 421_000, "openvino": 1})
    display.print_diff(diff(sample(), after), as_json=False)
    text = shown(capsys)
    assert "421337" in text.replace(",", "")
    assert "-337" in text.replace(",", "")


def test_a_diff_of_equal_reports_says_so(capsys: pytest.CaptureFixture[str]):
    display.print_diff((), as_json=False)
    assert shown(capsys).strip() == "The figures are the same."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.0000"),
        (0.00123, "1.23e-03"),
        (-0.5, "-0.5000"),
        (1.0, "1.0000"),
        (1234.5, "1234.50"),
    ],
)
def test_numbers_have_as_many_digits_as_they_need(value: float | None, text: str):
    assert display._number(value) == text
