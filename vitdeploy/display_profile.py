"""What `vitdeploy profile` and `doctor` show: latencies, costs, the roofline, the machine."""

import json
from typing import TYPE_CHECKING

from vitdeploy.console import print_json, print_line, print_table
from vitdeploy.report import Report
from vitdeploy.report.profile import ProfileResult, Ratio, RooflineResult, TimingRow

if TYPE_CHECKING:
    from vitdeploy.doctor import Examination

_MOST_LAYERS = 8


def print_profile(report: Report) -> None:
    """Print artefacts side by side; the first is what the others are compared with."""
    result = report.profile
    assert result is not None
    _print_timings(result)
    _print_loads(result)
    if result.roofline is not None:
        _print_roofline(result.roofline)
    for note in report.notes:
        print_line(f"note: {note}")


def _print_timings(result: ProfileResult) -> None:
    rows = []
    has_energy = any(row.energy_mj is not None for row in result.timings)
    for row in result.timings:
        cells = [
            *(row.name, row.part, row.precision, row.engine, str(row.batch), _streams(row)),
            *(_milliseconds(row.p50_ms), _milliseconds(row.p90_ms), _milliseconds(row.p99_ms)),
            *(_milliseconds(row.jitter_ms), f"{row.throughput_ips:.4g}", _ratio(row.ratio)),
        ]
        if has_energy:
            cells.append("-" if row.energy_mj is None else f"{row.energy_mj:.4g}")
        rows.append(cells)
    columns = ["artefact", "part", "precision", "engine", ">batch", ">streams x threads"]
    columns += [">p50, ms", ">p90, ms", ">p99, ms", ">jitter, ms", ">images/s"]
    columns += [">speed-up (95 %)", *([">mJ/image"] if has_energy else [])]
    print_table(f"Latency, against {result.reference}", columns, rows)


def _print_loads(result: ProfileResult) -> None:
    rows = [
        (
            row.name,
            row.part,
            str(row.streams),
            _megabytes(row.size_bytes),
            _milliseconds(row.load_ms),
            _milliseconds(row.first_ms),
            str(row.warmup_runs) if row.is_warm else f"{row.warmup_runs}, still falling",
            _megabytes(row.engine_peak_bytes),
            _megabytes(row.process_peak_bytes),
        )
        for row in result.loads
    ]
    columns = ["artefact", "part", ">streams", ">size, MB", ">load, ms", ">first run, ms"]
    columns += [">warm-up runs", ">engine's peak, MB", ">process's peak, MB"]
    print_table("Loading and memory", columns, rows)


def _print_roofline(roofline: RooflineResult) -> None:
    ceilings = roofline.ceilings
    known = [f"{name} {tops:.3g}" for name, tops in ceilings.tops.items() if tops is not None]
    print_line(
        f"This machine's ceilings on {ceilings.threads} thread(s): {', '.join(known)} TOPS; "
        f"memory {ceilings.bandwidth_gbs:.3g} GB/s"
    )
    rows = [
        (
            row.name,
            row.part,
            str(row.batch),
            f"{sum(row.macs.values()) / 1e9:.3g}",
            f"{row.bytes / 1e6:.4g}",
            _milliseconds(row.p50_ms),
            _milliseconds(row.limit_ms),
            f"{row.compute_percent:.1f}",
            f"{row.bandwidth_percent:.1f}",
            f"{row.utilisation_percent:.1f}",
        )
        for row in roofline.artefacts
    ]
    columns = ["artefact", "part", ">batch", ">GMACs", ">MB moved", ">p50, ms", ">limit, ms"]
    columns += [">compute, %", ">bandwidth, %", ">utilisation, %"]
    print_table("How far from the limit", columns, rows)
    for row in roofline.artefacts:
        layers = [
            (
                layer.name,
                layer.kind,
                layer.type,
                f"{layer.share_percent:.1f}",
                "-" if layer.macs is None else f"{layer.macs / 1e9:.3g}",
                "-"
                if layer.utilisation_percent is None
                else f"{layer.utilisation_percent:.0f}"
                + (" (memory)" if layer.is_memory_bound else ""),
            )
            for layer in row.layers[:_MOST_LAYERS]
        ]
        columns = ["layer", "kind", "type", ">time, %", ">GMACs", ">utilisation, %"]
        print_table(f"Slowest layers of {row.name}, {row.part}", columns, layers)
    for name, reason in roofline.skipped.items():
        print_line(f"note: no roofline of {name}: {reason}")


def _streams(row: TimingRow) -> str:
    return f"{row.streams} x {'-' if row.threads is None else max(1, row.threads // row.streams)}"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}x"
    return f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.4g}"


def print_examination(examination: "Examination", *, as_json: bool) -> None:
    """Print what a machine offers, then what is wrong with it."""
    if as_json:
        print_json(json.dumps(examination.to_dict(), indent=2, ensure_ascii=False))
        return
    print_table("This machine", ["", ""], list(examination.entries.items()))
    for finding in examination.findings:
        print_line(f"{finding.severity}: {finding.what}\n  mend: {finding.mend}")
    if not examination.findings:
        print_line("Nothing known to go wrong was found.")
