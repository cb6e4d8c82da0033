"""What changed between two reports, as rows of data; how they are shown is the caller's matter."""

from dataclasses import dataclass

from vitdeploy.report.schema import Report


@dataclass(frozen=True)
class Change:
    """One figure in two reports; None where a report does not have it."""

    section: str
    """`fidelity`, `latency`, `speedup`, `size_bytes` or `gates`."""
    key: str
    """What is compared, for instance `openvino/model/logits/top1`."""
    before: float | None
    after: float | None
    unit: str

    @property
    def delta(self) -> float | None:
        """Return after - before, or None where one is missing."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


def diff(before: Report, after: Report) -> tuple[Change, ...]:
    """Return every figure that differs, in the order of the schema; equal figures are left out."""
    old, new = _figures(before), _figures(after)
    return tuple(
        Change(section, key, old.get((section, key, unit)), new.get((section, key, unit)), unit)
        for section, key, unit in dict.fromkeys((*old, *new))
        if old.get((section, key, unit)) != new.get((section, key, unit))
    )


def _figures(report: Report) -> dict[tuple[str, str, str], float | None]:
    figures: dict[tuple[str, str, str], float | None] = {}
    for row in report.fidelity:
        place = "/".join(filter(None, (row.target, row.part, row.output, row.metric)))
        figures["fidelity", place, row.unit] = row.value
    for timing in report.latency:
        place = f"{timing.target}/{timing.part}/batch {timing.batch}/threads {timing.threads}"
        for name in ("p50_ms", "p90_ms", "p99_ms"):
            figures["latency", f"{place}/{name}", "ms"] = getattr(timing, name)
    for target, ratio in report.speedup.items():
        figures["speedup", target, "x"] = ratio
    for name, size in report.size_bytes.items():
        figures["size_bytes", name, "bytes"] = size
    for gate in report.gates:
        figures["gates", gate.name, "passed"] = float(gate.passed)
    return figures
