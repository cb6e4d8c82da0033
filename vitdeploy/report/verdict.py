"""Ship or not, and why: the first thing a reader looks for, in words.

Pure functions of a `Report`. The limits are the run's gates; what nobody limited, nobody decided.
"""

from dataclasses import dataclass

from vitdeploy.report import summary
from vitdeploy.report.schema import GateRow, Report
from vitdeploy.report.summary import Headline


@dataclass(frozen=True)
class Verdict:
    """What to do with the artefacts."""

    ships: bool | None
    """None where no gate was set, or where the weights are random: then nobody can say."""
    title: str
    summary: str
    """How many gates passed, or why there is no verdict."""
    reasons: tuple[str, ...]
    """What failed, or else what each target gives."""


def verdict(report: Report) -> Verdict:
    """Return whether the artefacts may ship, and why."""
    failed = tuple(gate_words(gate) for gate in report.gates if not gate.passed)
    strayed = tuple(
        f"{row.part} at batch {row.batch}: the exported FP32 graph differs from the model it came "
        f"from by {row.max_abs_diff:.2e}, allowed is {row.tolerance:.2e}"
        for row in report.parity
        if not row.passed
    )
    count = len(report.gates)
    if failed or strayed:
        told = (
            f"Failed: {len(failed)} of {count} gates" if failed else "Failed: the export's parity"
        )
        return Verdict(ships=False, title="Do not ship", summary=told, reasons=(*failed, *strayed))
    gains = tuple(target_words(item) for item in summary.headlines(report))
    if not count:
        told = "No gates were set, so nothing was required of this run."
        return Verdict(None, "Yours to decide", told, gains)
    told = "Passed: the gate" if count == 1 else f"Passed: all {count} gates"
    if report.model.weights == "random":
        return Verdict(None, "Nothing to ship", f"{told}, but the weights are random.", gains)
    passed = tuple(gate_words(gate) for gate in report.gates)
    return Verdict(ships=True, title="Ship it", summary=told, reasons=gains or passed)


def gate_words(gate: GateRow) -> str:
    """Return a gate as a sentence: `Loss of Top-1 on OpenVINO: 0.55 points, at most 1`."""
    kind, *place = gate.name.split(":")
    target = summary.target_label(place[0]) if place else ""
    value = "not measured" if gate.value is None else f"{gate.value + 0.0:.4g}"  # no "-0"
    limit = f"{gate.limit:.4g}"
    if kind == "max_drop_points" and len(place) == 2:
        unit = "" if gate.value is None else " points"
        text = (
            f"Loss of {summary.metric_label(place[1])} on {target}: {value}{unit}, at most {limit}"
        )
    elif kind == "min_speedup":
        unit = "" if gate.value is None else "×"
        text = f"Speed-up on {target}: {value}{unit}, at least {limit}×"
    elif kind == "max_latency_ms":
        unit = "" if gate.value is None else " ms"
        text = f"Latency on {target}: {value}{unit}, at most {limit} ms"
    else:
        text = f"{gate.name}: {value}, limit {limit}"
    return text if gate.value is not None else f"{text} ({gate.value_reason})"


def target_words(item: Headline) -> str:
    """Return what a target gives: fidelity, speed, size, as far as they were measured."""
    facts = []
    row = item.fidelity
    if row is not None and row.value is not None:
        delta = summary.format_delta(row)
        told = f"{summary.metric_label(row.metric)} {summary.format_metric(row, row.value)}"
        facts.append(f"{told} ({delta})" if delta else told)
    if item.speedup is not None:
        facts.append(summary.format_speedup(item.speedup))
    if item.size_bytes is not None and item.reference_bytes is not None:
        facts.append(summary.format_size_ratio(item.reference_bytes, item.size_bytes))
    precision = f" in {item.precision.upper()}" if item.precision else ""
    return f"{summary.target_label(item.target)}{precision}: {', '.join(facts) or 'not measured'}"
