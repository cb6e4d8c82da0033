"""`diff` lists what changed and only that."""

import pytest

from tests.report.samples import failing_sample, sample
from vitdeploy.report import diff


def test_equal_reports_do_not_differ():
    assert diff(sample(), sample(notes=["other words"])) == ()


def test_changes_have_both_values_and_the_difference():
    rows = {(row.section, row.key): row for row in diff(sample(), failing_sample())}
    slower = rows["latency", "onnx/model/batch 1/threads 4/p50_ms"]
    assert (slower.before, slower.after, slower.unit) == (0.74, 1.57, "ms")
    assert slower.delta == pytest.approx(0.83)
    assert rows["speedup", "openvino"].after is None
    assert rows["speedup", "openvino"].delta is None
    assert rows["gates", "min_speedup:openvino"].delta == -1
    assert not [key for section, key in rows if section in {"fidelity", "size_bytes"}]


def test_what_only_one_report_has_is_listed():
    without = sample(fidelity=[row.model_dump() for row in sample().fidelity[1:]])
    (row,) = diff(sample(), without)
    assert (row.key, row.before, row.after) == ("onnx/model/logits/top1", 97.78, None)
