"""Collecting outputs over batches, and the rows that compare them."""

import numpy as np
import pytest

from vitdeploy.errors import DataError
from vitdeploy.evaluation import collect_outputs, drop_points, fidelity_rows, find_value

PLACE = ("onnx", "model")
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((10, 4)).astype(np.float32)
LABELS = LOGITS.argmax(1)


class Doubler:
    """A runner that records the batches it was given."""

    engine = "none"
    threads = 1

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def __call__(self, feeds):
        self.batches.append(feeds["x"])
        return {"y": 2 * feeds["x"].astype(np.float64)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def feeds_of(count: int, size: int):
    values = np.arange(count, dtype=np.float32)[:, None]
    return ({"x": values[start : start + size]} for start in range(0, count, size))


def test_outputs_are_concatenated_as_float32_and_progress_is_told():
    told: list[int] = []
    outputs = collect_outputs(Doubler(), feeds_of(5, 2), progress=told.append)
    np.testing.assert_array_equal(outputs["y"][:, 0], [0, 2, 4, 6, 8])
    assert outputs["y"].dtype == np.float32
    assert told == [2, 4, 5]


def test_a_short_batch_is_filled_for_a_fixed_batch_and_the_surplus_dropped():
    runner = Doubler()
    outputs = collect_outputs(runner, feeds_of(5, 3), batch=3)
    assert [len(batch) for batch in runner.batches] == [3, 3]
    np.testing.assert_array_equal(outputs["y"][:, 0], [0, 2, 4, 6, 8])


def test_no_image_is_an_error():
    with pytest.raises(DataError, match="holds no image"):
        collect_outputs(Doubler(), iter(()))


def test_every_metric_that_applies_has_a_row():
    value = LOGITS + 0.01
    rows = {
        row.metric: row
        for row in fidelity_rows(PLACE, {"logits": LOGITS}, {"logits": value}, LABELS)
    }
    assert set(rows) == {
        "top1",
        "agreement",
        "cosine_mean",
        "cosine_min",
        "sqnr_db",
        "max_abs_diff",
    }
    assert rows["top1"].value == rows["top1"].reference == 100.0
    assert rows["sqnr_db"].reference is None
    assert "no value of its own" in (rows["sqnr_db"].reference_reason or "")
    assert {(row.target, row.part, row.output, row.n) for row in rows.values()} == {
        ("onnx", "model", "logits", 10)
    }


def test_features_have_no_classes():
    rows = fidelity_rows(PLACE, {"pooler_output": LOGITS}, {"pooler_output": LOGITS}, LABELS)
    assert not {"top1", "top5", "agreement"} & {row.metric for row in rows}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "shape None"),
        ({"logits": LOGITS[:, :3]}, r"shape \(10, 3\), the reference has \(10, 4\)"),
        ({"logits": np.full_like(LOGITS, np.nan)}, "NaN or infinity"),
        ({"logits": np.where(LOGITS > 1, np.inf, LOGITS)}, "NaN or infinity"),
    ],
)
def test_what_cannot_be_compared_is_refused(value: dict, text: str):
    with pytest.raises(DataError, match=text):
        fidelity_rows(PLACE, {"logits": LOGITS}, value, LABELS)


def test_the_worst_output_counts():
    reference = {"a": LOGITS, "b": LOGITS}
    rows = fidelity_rows(PLACE, reference, {"a": LOGITS, "b": LOGITS[::-1].copy()}, None)
    worst = find_value(rows, "onnx", "cosine_mean")
    assert worst is not None
    assert worst.output == "b"
    assert find_value(rows, "openvino", "cosine_mean") is None
    assert find_value(rows, "onnx", "top1") is None


def test_the_drop_is_of_top1_else_agreement_else_cosine():
    worse = LOGITS.copy()
    worse[0] = -worse[0]
    logits, features = {"logits": LOGITS}, {"pooler_output": LOGITS}
    labelled = fidelity_rows(PLACE, logits, {"logits": worse}, LABELS)
    assert drop_points(labelled, "onnx") == ("top1", pytest.approx(10.0))
    unlabelled = fidelity_rows(PLACE, logits, {"logits": worse}, None)
    assert drop_points(unlabelled, "onnx") == ("agreement", pytest.approx(10.0))
    headless = fidelity_rows(PLACE, features, {"pooler_output": worse}, None)
    metric, points = drop_points(headless, "onnx") or ("", 0.0)
    assert metric == "cosine_mean"
    # one image of ten turned round: its cosine falls from 1 to about -1
    assert 10 < points < 25
    assert drop_points(headless, "openvino") is None


def test_an_artefact_that_is_better_drops_a_negative_number_of_points():
    wrong = LOGITS.copy()
    wrong[0] = -wrong[0]
    rows = fidelity_rows(PLACE, {"logits": wrong}, {"logits": LOGITS}, LABELS)
    assert drop_points(rows, "onnx") == ("top1", pytest.approx(-10.0))
