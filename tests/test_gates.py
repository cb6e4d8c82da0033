"""Each gate on both sides of its limit, at it, and where nothing was measured."""

import pytest

from tests.report.samples import sample
from vitdeploy.gates import check_gates, unfaithful_reason
from vitdeploy.recipe import GateSection
from vitdeploy.report import FidelityRow

FIDELITY = sample().fidelity
"""top-1: onnx 98.33 -> 97.78, openvino 98.33 -> 98.06."""


def gates(section: GateSection, speedup=None, latency_ms=None, fidelity=FIDELITY):
    rows = check_gates(section, ["onnx", "openvino"], fidelity, speedup or {}, latency_ms or {})
    return {row.name: row for row in rows}


def test_no_gate_no_row():
    assert gates(GateSection()) == {}


def test_drop_is_checked_for_each_target():
    rows = gates(GateSection(max_drop_points=0.5))
    assert set(rows) == {"max_drop_points:onnx:top1", "max_drop_points:openvino:top1"}
    assert not rows["max_drop_points:onnx:top1"].passed
    assert rows["max_drop_points:onnx:top1"].value == pytest.approx(0.55)
    assert rows["max_drop_points:openvino:top1"].passed


def mask_rows(iou: float) -> tuple[FidelityRow, ...]:
    """Of a model that segments: mask IoU, beside a cosine of its encoder that would pass."""
    return tuple(
        FidelityRow(
            target="onnx",
            part=part,
            metric=metric,
            reference=1.0,
            value=value,
            delta=value - 1.0,
            unit=unit,
            n=4,
        )
        for part, metric, value, unit in (
            ("image_encoder", "cosine_mean", 0.9999, "cosine"),
            ("model", "mask_iou_mean", iou, "IoU"),
        )
    )


@pytest.mark.parametrize(("iou", "reason"), [(0.98, None), (0.97, "mask IoU 0.9700, 0.98 needed")])
def test_without_a_gate_masks_say_what_is_faithful(iou: float, reason: str | None):
    assert unfaithful_reason(GateSection(), mask_rows(iou), "onnx") == reason


@pytest.mark.parametrize(("limit", "passed"), [(1.4, True), (1.5, True), (1.6, False)])
def test_speedup(limit: float, passed: bool):
    rows = gates(GateSection(min_speedup=limit), speedup={"onnx": 1.5, "openvino": 9.0})
    assert rows["min_speedup:onnx"].passed is passed
    assert rows["min_speedup:openvino"].passed


@pytest.mark.parametrize(("limit", "passed"), [(1.9, False), (2.0, True), (2.1, True)])
def test_latency(limit: float, passed: bool):
    rows = gates(GateSection(max_latency_ms=limit), latency_ms={"onnx": 2.0, "openvino": 0.1})
    assert rows["max_latency_ms:onnx"].passed is passed


def test_what_was_not_measured_fails_and_says_why():
    every = GateSection(max_drop_points=100.0, min_speedup=0.001, max_latency_ms=1e9)
    rows = gates(every, speedup={"onnx": None}, fidelity=())
    assert len(rows) == 6
    for row in rows.values():
        assert not row.passed
        assert row.value is None
        assert "not measured" in (row.value_reason or "")
    assert "max_drop_points:onnx:fidelity" in rows
