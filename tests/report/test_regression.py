"""A release pipeline's gate: what got worse is found, noise of the machine is not."""

import pytest

from tests.report.samples import sample
from vitdeploy.report import Limits, Report, regressions

LIMITS = Limits(percent=5.0)


def changed(**times: float) -> Report:
    """The sample with other medians by target, and the speed-ups that follow."""
    rows = [row.model_dump() for row in sample().latency]
    for row in rows:
        factor = times.get(row["target"], 1.0)
        for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms"):
            row[name] = row[name] and row[name] * factor
    medians = {row["target"]: row["p50_ms"] for row in rows}
    speedup = {name: medians["reference"] / medians[name] for name in ("onnx", "openvino")}
    return sample(latency=rows, speedup=speedup)


def keys(after: Report, before: Report | None = None, limits: Limits = LIMITS) -> list[str]:
    found = regressions(before or sample(), after, limits)
    return [f"{one.change.section} {one.change.key.split('/')[0]}" for one in found]


def test_nothing_got_worse():
    assert keys(sample()) == []
    assert keys(changed(onnx=0.5)) == []
    assert keys(changed(onnx=1.04)) == []


def test_an_artefact_that_got_slower_is_found_by_clock_and_by_ratio():
    after = changed(onnx=1.2)
    assert keys(after) == ["latency onnx", "speedup onnx"]
    first = regressions(sample(), after, LIMITS)[0]
    assert first.reason == "20.0 % slower, 5 % allowed"
    assert keys(after, limits=Limits(25)) == []


def test_a_slower_machine_is_no_regression():
    assert keys(changed(reference=1.3, onnx=1.3, openvino=1.3)) == []


def test_a_faster_reference_is_no_regression():
    assert keys(changed(reference=0.7)) == []


def test_on_another_machine_the_ratio_alone_judges():
    elsewhere = {**sample().environment, "cpu": "Another CPU"}
    slower = changed(reference=3.0, onnx=3.3, openvino=3.0).model_copy(
        update={"environment": elsewhere}
    )
    assert keys(slower) == ["speedup onnx"]
    assert keys(changed(reference=3.0, onnx=3.0, openvino=3.0)) == []


def test_without_a_ratio_the_clock_judges():
    before = sample(speedup={})
    after = changed(onnx=1.2).model_copy(update={"speedup": {}})
    assert keys(after, before) == ["latency onnx"]


def fidelity(metric: str, value: float) -> Report:
    rows = [row.model_dump() for row in sample().fidelity]
    row = next(row for row in rows if row["metric"] == metric)
    row["delta"] = value - row["reference"]
    row["value"] = value
    return sample(fidelity=rows)


@pytest.mark.parametrize(
    ("metric", "value", "reason"),
    [
        ("top1", 97.2, "0.58 points lost, 0.5 allowed"),
        ("top1", 97.4, None),
        ("top1", 99.0, None),
        ("cosine_mean", 0.99271, "0.60 points lost, 0.5 allowed"),
        ("cosine_mean", 0.99471, None),
        ("cosine_min", 0.5, None),  # one image; shown, not judged
    ],
)
def test_fidelity_is_judged_in_points(metric, value, reason):
    found = regressions(sample(), fidelity(metric, value), LIMITS)
    assert [one.reason for one in found] == ([reason] if reason else [])


def test_size_is_judged_by_its_share():
    sizes = dict(sample().size_bytes)
    assert keys(sample(size_bytes={**sizes, "onnx": 450_000})) == ["size_bytes onnx"]
    assert keys(sample(size_bytes={**sizes, "onnx": 440_000})) == []
    assert keys(sample(size_bytes={**sizes, "reference": 9_000_000})) == []


def test_what_is_not_measured_any_more_got_worse():
    gone = sample(
        artifacts=[row.model_dump() for row in sample().artifacts if row.target == "onnx"],
        fidelity=[row.model_dump() for row in sample().fidelity if row.target == "onnx"],
        speedup={"onnx": sample().speedup["onnx"]},
        latency=[row.model_dump() for row in sample().latency if row.target != "openvino"],
        size_bytes={"reference": 1_262_550, "onnx": 421_337},
    )
    found = regressions(sample(), gone, LIMITS)
    assert {one.reason for one in found} == {"measured before, and not any more"}
    assert {one.change.section for one in found} == {"fidelity", "latency", "speedup", "size_bytes"}
    assert regressions(gone, sample(), LIMITS) == ()  # more is no loss


def test_a_gate_that_fails_now_is_found():
    gates = [row.model_dump() for row in sample().gates]
    gates[2] |= {"value": 1.4, "passed": False}
    (one,) = regressions(sample(), sample(gates=gates), LIMITS)
    assert (one.change.key, one.reason) == ("min_speedup:openvino", "the gate failed")
    assert regressions(sample(gates=gates), sample(gates=gates), LIMITS) == ()
