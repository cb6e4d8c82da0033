"""How figures are worded, and which of them lead."""

import pytest

from tests.report.samples import sample, two_part_sample
from vitdeploy.report import summary


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (421_337, "421 kB"),
        (999_600, "1.00 MB"),
        (86_500_000, "86.5 MB"),
        (2_550_000_000, "2.55 GB"),
    ],
)
def test_sizes(size, text):
    assert summary.format_bytes(size) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (2.0, "2.00× faster"),
        (0.5, "2.00× slower"),
        (1.001, "as fast"),
        (0.999, "as fast"),
    ],
)
def test_speedups(ratio, text):
    assert summary.format_speedup(ratio) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.0421, "0.042 ms"), (0.74, "0.74 ms"), (12.34, "12.3 ms"), (1234.5, "1234 ms")],
)
def test_latencies(milliseconds, text):
    assert summary.format_ms(milliseconds) == text


def test_sizes_against_the_reference():
    assert summary.format_size_ratio(400, 100) == "4.00× smaller"
    assert summary.format_size_ratio(100, 200) == "2.00× larger"
    assert summary.format_size_ratio(100, 100) == "same size"


def test_counts():
    assert [summary.format_count(n) for n in (12, 312_586, 5_717_416)] == ["12", "313 k", "5.72 M"]


def test_the_headline_is_the_most_telling_metric_and_its_worst_row():
    rows = [row.model_dump() for row in two_part_sample().fidelity]
    rows[1].update(value=90.0, delta=-8.33)  # top-1 of the second part on onnx
    first = summary.headlines(sample(fidelity=rows))[0]
    assert (first.fidelity.metric, first.fidelity.value) == ("top1", 90.0)
    unlabelled = [row for row in rows if not row["metric"].startswith("top")]
    assert summary.headlines(sample(fidelity=unlabelled))[0].fidelity.metric == "agreement"
    assert summary.headlines(sample(fidelity=[]))[0].fidelity is None
    drawn = {**sample().model.model_dump(), "weights": "random"}
    assert summary.headlines(sample(model=drawn))[0].fidelity.metric == "cosine_mean"


def test_medians_of_several_parts_are_not_mixed():
    assert summary.headlines(sample())[1].p50_ms == 0.482
    assert summary.headlines(two_part_sample())[1].p50_ms is None


def test_only_what_both_models_have_by_themselves_has_a_change():
    texts = {row.metric: summary.format_delta(row) for row in sample().fidelity[:7]}
    assert texts["top1"] == "−0.55 points"
    assert texts["top5"] == "±0.00 points"
    assert texts["agreement"] == texts["cosine_mean"] == texts["sqnr_db"] == ""
