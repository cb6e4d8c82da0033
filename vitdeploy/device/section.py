"""A device report as tables, for the terminal and for HTML; nothing is measured or printed here."""

from collections.abc import Mapping
from typing import Any

from vitdeploy.report import summary
from vitdeploy.report.tables import Cell, Table

MOST_LAYERS = 10
"""The slowest layers of an engine that are shown."""
_FACTS = (
    ("board", "Board"),
    ("jetpack", "JetPack"),
    ("l4t", "Jetson Linux"),
    ("power_mode", "Power mode"),
    ("gpu", "GPU"),
    ("compute_capability", "Compute capability"),
    ("gpu_clock_mhz", "GPU clock, MHz"),
    ("driver", "Driver"),
    ("cuda_runtime", "CUDA"),
    ("tensorrt", "TensorRT"),
)


def device_section(report: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the tables of a `device_report.json`: the device, its engines, the slowest layers.

    What was not found out is a dash, its reason a note below the table.
    """
    layers = [_layers_table(part) for part in report["parts"]]
    return (
        _device_table(report["device"]),
        _engines_table(report),
        *(table for table in layers if table.rows),
    )


def _device_table(device: Mapping[str, Any]) -> Table:
    rows, notes = [], []
    for name, label in _FACTS:
        value = device.get(name)
        if value is not None:
            rows.append((Cell(label), Cell(str(value))))
        elif device.get("is_jetson") or name not in {"board", "jetpack", "l4t", "power_mode"}:
            notes.append(f"{label}: {device.get(f'{name}_reason', 'unknown')}")
            rows.append((Cell(label), Cell("\N{EM DASH}", note=len(notes))))
    return Table("Device", ("What", "Value"), tuple(rows), tuple(notes))


def _engines_table(report: Mapping[str, Any]) -> Table:
    rows, notes = [], []
    for part in report["parts"]:
        for item in part["candidates"]:
            status, tone = _status(part, item)
            note = None
            if item["error"]:
                notes.append(f"{part['part']}, {item['precision']}: {item['error']}")
                note = len(notes)
            p50, p90, p99 = _percentiles(item)
            rows.append(
                (
                    Cell(part["part"]),
                    Cell(item["precision"], f"{item['typing']}ly typed"),
                    Cell(status, tone=tone, note=note),
                    Cell(_golden(item)),
                    Cell(p50),
                    Cell(p90),
                    Cell(p99),
                    Cell(summary.format_bytes(item["engine_bytes"]) if _built(item) else "-"),
                    Cell(f"{item['build_seconds']:.0f} s" if _built(item) else "-"),
                    Cell(f"{item['int8_products']} of {item['products']}" if _seen(item) else "-"),
                    _attention_cell(item),
                )
            )
    columns = ["Part", "Precision", "Verdict", "#Golden, dB", "#p50", "#p90", "#p99"]
    columns += ["#Engine", "#Build", "#INT8 products", "#Fused attention"]
    title = f"Engines of TensorRT {report['device']['tensorrt']}, GPU compute time"
    return Table(title, tuple(columns), tuple(rows), tuple(notes))


def _layers_table(part: Mapping[str, Any]) -> Table:
    chosen: Mapping[str, Any] = next(
        (c for c in part["candidates"] if c["precision"] == part["chosen"]), {}
    )
    timed = [row for row in chosen.get("layers", ()) if row["mean_ms"] is not None]
    slowest = sorted(timed, key=lambda row: -row["mean_ms"])[:MOST_LAYERS]
    total = sum(row["mean_ms"] for row in timed) or 1.0
    rows = tuple(
        (
            Cell(row["name"], tone="code"),
            Cell(row["kind"] or "-"),
            Cell(", ".join(dict.fromkeys(row["input_types"])) or "-"),
            Cell(summary.format_ms(row["mean_ms"])),
            Cell(f"{100 * row['mean_ms'] / total:.1f} %"),
        )
        for row in slowest
    )
    title = f"Slowest layers of {part['part']}, {part['chosen']}"
    return Table(title, ("Layer", "Kind", "Inputs", "#Time", "#Of all layers"), rows)


def _status(part: Mapping[str, Any], item: Mapping[str, Any]) -> tuple[str, str]:
    """Return the verdict's word and tone."""
    kept = part["engine"] is not None and part["chosen"] == item["precision"]
    if item["status"] in {"mismatch", "failed"}:
        return ("differs from the model" if item["status"] == "mismatch" else "failed"), "bad"
    if item["status"] == "unchecked":
        return "not compared", "bad"
    return ("kept", "good") if kept else ("faithful", "")


def _golden(item: Mapping[str, Any]) -> str:
    """Return the worst output's SQNR."""
    golden = item.get("golden")
    if not golden:
        return "-"
    known = [row["sqnr_db"] for row in golden["outputs"] if row["sqnr_db"] is not None]
    if known:
        return f"{min(known):.1f}"
    return "equal" if golden["passed"] else "NaN"


def _percentiles(item: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return those of the fastest way it was timed, as it will be used."""
    timed = [row for row in item.get("latency", ()) if row["p50_ms"] is not None]
    if not timed:
        return "-", "-", "-"
    best = min(timed, key=lambda row: float(row["p50_ms"]))
    shown = [best["p50_ms"], best["p90_ms"], best["p99_ms"]]
    p50, p90, p99 = ("-" if value is None else summary.format_ms(value) for value in shown)
    return p50, p90, p99


def _attention_cell(item: Mapping[str, Any]) -> Cell:
    if not _seen(item):
        return Cell("-")
    int8 = item["int8_attention"]
    return Cell(str(item["fused_attention"]), f"{int8} in INT8" if int8 else "")


def _built(item: Mapping[str, Any]) -> bool:
    return "engine_bytes" in item


def _seen(item: Mapping[str, Any]) -> bool:
    return "products" in item
