"""The tables of a report as rows of text, the same for HTML and Markdown.

A figure that is missing becomes a dash with a numbered note that says why. Nothing here
knows a markup language.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from vitdeploy.report import summary
from vitdeploy.report.schema import FidelityRow, GateRow, ImagesInfo, LatencyRow, Report


@dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    detail: str = ""
    """What follows in small print."""
    tone: str = ""
    """`good`, `bad`, `code` or nothing."""
    note: int | None = None
    """Number of the note below the table."""


@dataclass(frozen=True)
class Table:
    """A titled table; columns whose name starts with `#` are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Notes:
    """Numbers the reasons of one table, equal ones alike."""

    reasons: list[str] = field(default_factory=list)

    def cell(self, text: str | None, reason: str | None, detail: str = "", tone: str = "") -> Cell:
        if text is not None:
            return Cell(text, detail, tone)
        reason = reason or "not measured"
        if reason not in self.reasons:
            self.reasons.append(reason)
        return Cell("\N{EM DASH}", note=self.reasons.index(reason) + 1)


def gates_table(report: Report) -> Table:
    """Return limit, value and verdict of every gate."""
    notes = _Notes()

    def row(gate: GateRow) -> tuple[Cell, ...]:
        value = None if gate.value is None else f"{gate.value + 0.0:.4g}"  # no "-0"
        verdict = Cell("passed", tone="good") if gate.passed else Cell("failed", tone="bad")
        return (
            Cell(gate.name, tone="code"),
            Cell(f"{gate.limit:.4g}"),
            notes.cell(value, gate.value_reason),
            verdict,
        )

    rows = tuple(row(gate) for gate in report.gates)
    return Table("Gates", ("Gate", "#Limit", "#Value", "Verdict"), rows, tuple(notes.reasons))


def fidelity_table(report: Report) -> Table:
    """Return one row per metric and output: the FP32 value, then one column per target."""
    notes = _Notes()
    targets = tuple(dict.fromkeys(row.target for row in report.fidelity))
    many_parts = len({row.part for row in report.fidelity}) > 1
    many_outputs = len({row.output for row in report.fidelity}) > 1
    places: dict[tuple[str, str | None, str], dict[str, FidelityRow]] = {}
    for item in report.fidelity:
        places.setdefault((item.part, item.output, item.metric), {})[item.target] = item
    rows = []
    for (part, output, metric), by_target in places.items():
        first = next(iter(by_target.values()))
        where = [part] * many_parts + [output or "all outputs"] * many_outputs
        known = None if first.reference is None else summary.format_metric(first, first.reference)
        cells = [
            Cell(summary.metric_label(metric), " / ".join(where)),
            notes.cell(known, first.reference_reason),
        ]
        for target in targets:
            cells.append(_fidelity_cell(by_target.get(target), notes))
        rows.append((*cells, Cell(str(first.n))))
    columns = ("Metric", "#FP32", *(f"#{summary.target_label(name)}" for name in targets))
    return Table("Fidelity", (*columns, "#Images"), tuple(rows), tuple(notes.reasons))


def _fidelity_cell(row: FidelityRow | None, notes: _Notes) -> Cell:
    if row is None or row.value is None:
        return notes.cell(None, row.value_reason if row else "does not apply to this target")
    return Cell(summary.format_metric(row, row.value), summary.format_delta(row))


def latency_table(report: Report) -> Table:
    """Return percentiles and throughput of every timed artefact, the reference among them."""
    notes = _Notes()
    many_parts = len({row.part for row in report.latency}) > 1

    def row(item: LatencyRow) -> tuple[Cell, ...]:
        times = [
            notes.cell(
                None if value is None else summary.format_ms(value),
                getattr(item, f"{name}_reason"),
            )
            for name, value in _times(item)
        ]
        rate = None if item.throughput_ips is None else f"{item.throughput_ips:.4g}"
        threads = None if item.threads is None else str(item.threads)
        return (
            Cell(summary.target_label(item.target), item.part * many_parts),
            Cell(item.engine),
            Cell(item.precision.upper()),
            Cell(str(item.batch)),
            notes.cell(threads, item.threads_reason),
            *times,
            notes.cell(rate, item.throughput_ips_reason),
            Cell(str(item.samples)),
        )

    columns = ("Target", "Engine", "Precision", "#Batch", "#Threads")
    figures = ("#p50", "#p90", "#p99", "#Mean", "#Images/s", "#Samples")
    rows = tuple(row(item) for item in report.latency)
    return Table("Latency", (*columns, *figures), rows, tuple(notes.reasons))


def _times(row: LatencyRow) -> Iterable[tuple[str, float | None]]:
    return tuple((name, getattr(row, name)) for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms"))


def artifacts_table(report: Report) -> Table:
    """Return what lies in the bundle: precision kept, size, hash."""
    notes = _Notes()
    int8_anywhere = any(row.int8_macs_percent is not None for row in report.artifacts)
    many_parts = len({row.part for row in report.artifacts}) > 1
    rows = []
    for item in report.artifacts:
        share = None if item.int8_macs_percent is None else f"{item.int8_macs_percent:.1f} %"
        cells = [
            Cell(summary.target_label(item.target), item.part * many_parts),
            Cell(item.precision.upper()),
            Cell(summary.format_bytes(item.bytes)),
            *([notes.cell(share, item.int8_macs_percent_reason)] if int8_anywhere else []),
            Cell(item.path, tone="code"),
            Cell(item.sha256[:16], tone="code"),
        ]
        rows.append(tuple(cells))
    columns = ["Target", "Precision", "#Size", *(["#MACs in INT8"] if int8_anywhere else [])]
    columns += ["File", "SHA-256 (first 16 digits)"]
    return Table("Artefacts", tuple(columns), tuple(rows), tuple(notes.reasons))


def parity_table(report: Report) -> Table:
    """Return how far the FP32 ONNX is from torch, or from the ONNX file it was made from."""
    origin = "the original file" if report.model.family == "onnx" else "torch"
    rows = tuple(
        (
            Cell(row.part),
            Cell(str(row.batch)),
            Cell(f"{row.max_abs_diff:.2e}"),
            Cell(f"{row.max_relative:.2e}"),
            Cell(f"{row.tolerance:.2e}"),
            Cell("passed", tone="good") if row.passed else Cell("failed", tone="bad"),
        )
        for row in report.parity
    )
    columns = ("Part", "#Batch", "#Max. abs. difference", "#Relative", "#Tolerance", "Verdict")
    return Table(f"Export parity: FP32 ONNX against {origin}", columns, rows)


def stages_table(report: Report) -> Table:
    """Return seconds and peak memory of every stage."""
    notes = _Notes()
    rows = []
    for row in report.stages:
        peak = None if row.peak_rss_bytes is None else summary.format_bytes(row.peak_rss_bytes)
        cells = (Cell(row.name), Cell(f"{row.seconds:.2f} s"))
        rows.append((*cells, notes.cell(peak, row.peak_rss_bytes_reason)))
    return Table("Stages", ("Stage", "#Time", "#Peak memory"), tuple(rows), tuple(notes.reasons))


def images_table(report: Report) -> Table:
    """Return which images calibrated and evaluated."""
    notes = _Notes()

    def row(use: str, images: ImagesInfo | None, reason: str | None) -> tuple[Cell, ...]:
        if images is None:
            return (Cell(use), notes.cell(None, reason), Cell(""), Cell(""), Cell(""), Cell(""))
        return (
            Cell(use),
            Cell(images.name),
            Cell(images.origin),
            Cell(str(images.images)),
            Cell(str(images.skipped)),
            Cell(images.digest[:16], tone="code"),
        )

    rows = (
        row("Calibration", report.calibration, report.calibration_reason),
        row("Evaluation", report.evaluation, report.evaluation_reason),
    )
    columns = ("Use", "Set", "Origin", "#Images", "#Skipped", "Digest")
    return Table("Images", columns, rows, tuple(notes.reasons))


def environment_table(report: Report) -> Table:
    """Return what the figures were measured on and with."""
    rows = tuple((Cell(key), Cell(value)) for key, value in sorted(report.environment.items()))
    return Table("Environment", ("What", "Value"), rows)


def roofline_table(report: Report) -> Table:
    """Return how much of the machine's ceilings each artefact uses; no rows where not measured."""
    measured = report.profile.roofline if report.profile else None
    rows = tuple(
        (
            Cell(item.name, item.part),
            Cell(item.precision.upper()),
            Cell(str(item.batch)),
            Cell(f"{2e-9 * sum(item.macs.values()):.3g}"),
            Cell(summary.format_bytes(item.bytes)),
            Cell(summary.format_ms(item.limit_ms)),
            Cell(summary.format_ms(item.p50_ms)),
            Cell(f"{item.utilisation_percent:.0f} %"),
        )
        for item in (measured.artefacts if measured else ())
    )
    columns = ("Artefact", "Precision", "#Batch", "#GOP", "#Bytes", "#Limit", "#Median", "#Reached")
    return Table("How far from the limit", columns, rows)


def profile_table(report: Report) -> Table:
    """Return what a profile adds to latencies: ratios with intervals, jitter, rates, energy."""
    notes = _Notes()
    timings = report.profile.timings if report.profile else ()
    rows = []
    for row in timings:
        ratio = None if row.ratio is None else f"{row.ratio.value:.3f}×"
        span = ""
        if row.ratio is not None and row.ratio.low is not None and row.ratio.high is not None:
            span = f"{row.ratio.low:.3f} to {row.ratio.high:.3f}"
        jitter = None if row.jitter_ms is None else summary.format_ms(row.jitter_ms)
        energy = None if row.energy_mj is None else f"{row.energy_mj:.4g} mJ"
        rows.append(
            (
                Cell(row.name, row.part),
                Cell(str(row.batch)),
                Cell(str(row.streams)),
                Cell(f"{row.throughput_ips:.4g}"),
                notes.cell(ratio, row.ratio_reason, span),
                notes.cell(jitter, row.jitter_ms_reason),
                notes.cell(energy, row.energy_mj_reason),
            )
        )
    columns = ("Artefact", "#Batch", "#Streams", "#Images/s", "#Speed-up (95 %)", "#Jitter")
    title = f"Against {report.profile.reference}" if report.profile else ""
    return Table(title, (*columns, "#Energy an image"), tuple(rows), tuple(notes.reasons))


def loads_table(report: Report) -> Table:
    """Return what a profile's artefacts cost before their first steady run."""
    notes = _Notes()
    loads = report.profile.loads if report.profile else ()
    rows = []
    for row in loads:
        sizes = [
            (None if value is None else summary.format_bytes(value), reason)
            for value, reason in (
                (row.size_bytes, row.size_bytes_reason),
                (row.engine_peak_bytes, row.engine_peak_bytes_reason),
                (row.process_peak_bytes, row.process_peak_bytes_reason),
            )
        ]
        size, engine, process = (notes.cell(*pair) for pair in sizes)
        times = (Cell(summary.format_ms(row.load_ms)), Cell(summary.format_ms(row.first_ms)))
        rows.append((Cell(row.name, row.part), size, *times, engine, process))
    columns = ("Artefact", "#Size", "#Load", "#First run", "#Engine's memory", "#Process")
    return Table("Loading and memory", columns, tuple(rows), tuple(notes.reasons))
