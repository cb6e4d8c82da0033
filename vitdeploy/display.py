"""What each command shows: reports, profiles, models, predictions as tables or JSON.

Printing itself is `console`'s.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitdeploy.console import print_json, print_line, print_table
from vitdeploy.report import Change, FidelityRow, Regression, Report

if TYPE_CHECKING:
    from vitdeploy.diagnosis import Diagnosis
    from vitdeploy.diagnosis.schema import PartDiagnosis
    from vitdeploy.models import AliasRow
    from vitdeploy.models.description import ModelDescription
    from vitdeploy.predictor import Prediction

_SHOWN_METRICS = (
    *("top1", "agreement", "mask_iou_mean", "mask_iou_min", "boundary_iou_mean", "truth_iou_mean"),
    *("cosine_mean", "cosine_min", "sqnr_db"),
)


def print_report(report: Report, folder: str | None) -> None:
    """Print what a run did: fidelity, size, latency, gates, advice."""
    _print_summary(report)
    print_gates(report)
    for note in report.notes:
        print_line(f"note: {note}")
    if folder:
        print_line(f"bundle: {folder}   report: {folder}/report.html")


def print_check(report: Report) -> None:
    """Print what a check found: golden fidelity and gates."""
    rows = [
        (row.target, row.part, row.output or "-", row.metric, _number(row.value))
        for row in report.fidelity
    ]
    title = f"{report.model.name}: hashes match; golden outputs on this machine"
    print_table(title, ["target", "part", "output", "metric", ">value"], rows)
    print_gates(report)


def print_diagnosis(diagnosis: "Diagnosis") -> None:
    """Print where an INT8 artefact loses accuracy: products, blocks, norms, FP16, advice."""
    for part in diagnosis.parts:
        print_table(
            f"{diagnosis.model}, {part.part}: output SQNR {part.output_db:.1f} dB on "
            f"{diagnosis.images} images ({diagnosis.images_from}); products, worst first",
            ["product", "in", ">made, dB", ">inherited, dB", ">clipped, %", ">of output error, %"],
            [
                (
                    row.name,
                    "INT8" if row.is_int8 else "float",
                    _decimal(row.made_db),
                    _decimal(row.inherited_db),
                    _decimal(row.clipped_percent, 2),
                    _decimal(row.output_share_percent),
                )
                for row in part.sites
            ],
        )
        blocks = [(b.name, _decimal(b.made_db), _decimal(b.inherited_db)) for b in part.blocks]
        if blocks:
            print_table("Blocks", ["block", ">made, dB", ">inherited, dB"], blocks)
        norms = [(n.name, _decimal(n.before), _decimal(n.after)) for n in part.norms]
        if norms:
            columns = ["channels, max / median", ">FP32", ">after folds"]
            print_table("LayerNorm outliers", columns, norms)
        tensors = [
            (t.name, t.quantity, f"{t.max_abs:.3g}", "overflows" if t.overflows else "close")
            for t in part.fp16
        ]
        if tensors:
            print_table("Against FP16's 65504", ["tensor", "", ">largest", ""], tensors)
        for time in part.time:
            print_table(
                f"Time on {time.target}, {time.total_ms:.2f} ms by its counters, slowest layers",
                ["layer", "kind", ">ms", ">%"],
                [
                    (x.name, x.kind, f"{x.milliseconds:.3f}", _decimal(x.percent))
                    for x in time.layers
                ],
            )
            print_line(
                f"{time.target}: {_decimal(time.float_products_percent)} % of the time is in "
                "products of matrices in float, which is what more INT8 could at most take; "
                f"{_decimal(time.int8_products_percent)} % is in INT8 products."
            )
        _print_fusion(part)
        coverage = part.coverage
        print_line(
            f"INT8: {_decimal(coverage.weights_percent)} % of the MACs of products with weights, "
            f"{_decimal(coverage.all_percent)} % of all; in float: "
            f"{', '.join(coverage.kept_float) or 'none'}"
        )
        for line in part.advice.lines:
            print_line(f"advice: {line}")


def _print_fusion(part: "PartDiagnosis") -> None:
    """Print what builders made of a part: counts by builder, then what fell back and why."""
    if part.fusion:
        columns = ["target", "builder", ">kernels", ">INT8 products"]
        columns += [">fused attention", ">in INT8"]
        rows = [
            (
                row.target,
                f"{row.builder} (forecast)" if row.is_forecast else row.builder,
                str(row.kernels),
                _of_all(row.int8_products, row.products),
                _of_all(row.fused_attention, row.attention),
                str(row.int8_attention),
            )
            for row in part.fusion
        ]
        print_table("What the builder fused", columns, rows)
    fallen = [(row.target, item.name, item.reason) for row in part.fusion for item in row.fallbacks]
    if fallen:
        print_table("Fell back", ["target", "layer", "why"], fallen)
    for note in part.notes:
        print_line(f"note: {note}")
    if part.half_db is not None:
        print_line(
            f"With its FP16 layers the artefact's output SQNR is {part.half_db:.1f} dB; the tables "
            "are of INT8 alone."
        )


def print_aliases(rows: "Sequence[AliasRow]", *, as_json: bool) -> None:
    """Print the aliases by family."""
    if as_json:
        _print_data([dataclasses.asdict(row) for row in rows])
        return
    cells = [(row.name, row.family, row.source, str(row.image_size)) for row in rows]
    print_table("Models", ["alias", "family", "source", ">pixels"], cells)
    print_line("Also: timm:NAME, hf:REPO, a folder in timm's or transformers' layout.")


def print_description(description: "ModelDescription", *, as_json: bool) -> None:
    """Print what `inspect` found."""
    if as_json:
        _print_data(dataclasses.asdict(description))
        return
    height, width = description.image_size
    preprocess = description.preprocess
    rows = [
        ("family", description.family),
        ("source", description.source),
        ("task", description.task),
        ("weights", description.weights),
        ("parameters", f"{description.parameters:,}"),
        ("GMACs per image", "-" if description.gmacs is None else f"{description.gmacs:.3f}"),
        ("tokens per softmax row", str(description.tokens or "-")),
        ("input", f"{height} x {width} pixels"),
        ("resize", f"{preprocess.interpolation}, {preprocess.crop_mode} {preprocess.crop_pct:g}"),
        ("mean, std", f"{_triple(preprocess.mean)}, {_triple(preprocess.std)}"),
    ]
    for part in description.parts:
        for kind, tensors in (("in", part.inputs), ("out", part.outputs)):
            rows += [
                (f"{part.name} {kind}", f"{t.name} {t.dtype} {_shape(t.shape)}") for t in tensors
            ]
    print_table(description.name, ["", ""], rows)
    sites = [
        (s.path, str(s.num_heads), str(s.head_dim), str(s.tokens or "-"))
        for s in description.attention
    ]
    if sites:
        print_table("Attention", ["layer", ">heads", ">head size", ">tokens"], sites)
    for note in description.notes:
        print_line(f"note: {note}")


def print_predictions(results: "Sequence[tuple[str, Prediction]]", *, as_json: bool) -> None:
    """Print one block per image: its classes, or the shapes of its features."""
    if as_json:
        _print_data(
            [
                {
                    "image": name,
                    "classes": [dataclasses.asdict(score) for score in prediction.classes],
                    "outputs": {k: list(v.shape) for k, v in prediction.outputs.items()},
                }
                for name, prediction in results
            ]
        )
        return
    rows = []
    for name, prediction in results:
        shown = [f"{s.label} {100 * s.probability:.1f} %" for s in prediction.classes[:3]]
        if not shown:
            shown = [f"{k} {_shape(v.shape)}" for k, v in prediction.outputs.items()]
        rows.append((name, ", ".join(shown)))
    print_table("", ["image", "result"], rows)


def print_diff(
    changes: Sequence[Change], *, as_json: bool, regressions: Sequence[Regression] = ()
) -> None:
    """Print what changed between two reports, and which of it got worse than allowed."""
    worse = {one.change: one.reason for one in regressions}
    if as_json:
        _print_data(
            [
                {**dataclasses.asdict(c), "delta": c.delta, "regression": worse.get(c)}
                for c in changes
            ]
        )
        return
    if not changes:
        print_line("The figures are the same.")
        return
    columns = ["section", "figure", ">before", ">after", ">delta", "unit"]
    rows = [
        [c.section, c.key, _number(c.before), _number(c.after), _number(c.delta), c.unit]
        for c in changes
    ]
    if worse:
        columns.append("worse than allowed")
        rows = [[*row, worse.get(change, "")] for row, change in zip(rows, changes, strict=True)]
    print_table("Changes", columns, rows)


def _print_data(data: Any) -> None:
    print_json(json.dumps(data, indent=2, ensure_ascii=False))


def print_gates(report: Report) -> None:
    """Print limit, value and verdict of every gate; nothing where there is none."""
    if not report.gates:
        return
    rows = [
        (gate.name, _number(gate.limit), _number(gate.value), _verdict(gate.passed))
        for gate in report.gates
    ]
    print_table("Gates", ["gate", ">limit", ">value", "result"], rows)


def _triple(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _shape(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"


def _print_summary(report: Report) -> None:
    stamps = f"   [{', '.join(report.stamps)}]" if report.stamps else ""
    images = report.evaluation.images if report.evaluation else 0
    title = (
        f"{report.model.name}: FP32 against {report.precision.requested} on {images} images{stamps}"
    )
    targets = list(dict.fromkeys(artifact.target for artifact in report.artifacts))
    columns = ["", ">FP32 reference", *(f">{target}" for target in targets)]
    rows = [("precision", "fp32", *(_kept(report, target) for target in targets))]
    for metric in _SHOWN_METRICS:
        found = [_find(report.fidelity, target, metric) for target in targets]
        if not any(found):
            continue
        reference = next((row.reference for row in found if row), None)
        cells = [_with_delta(row) for row in found]
        rows.append((_LABELS[metric], _number(reference), *cells))
    rows.append(("size, MB", *_sizes(report, targets)))
    for field in ("p50_ms", "p90_ms", "p99_ms", "throughput_ips"):
        rows.append((_LABELS[field], *_latencies(report, targets, field)))
    speedups = [report.speedup.get(target) for target in targets]
    rows.append(("speed-up", "1.00x", *(f"{v:.2f}x" if v else "-" for v in speedups)))
    print_table(title, columns, rows)


_LABELS = {
    "top1": "top-1, %",
    "agreement": "agreement, %",
    "mask_iou_mean": "mask IoU, mean",
    "mask_iou_min": "mask IoU, worst",
    "boundary_iou_mean": "boundary IoU, mean",
    "truth_iou_mean": "mask IoU with the truth",
    "cosine_mean": "centred cosine, mean",
    "cosine_min": "centred cosine, worst",
    "sqnr_db": "SQNR, dB",
    "p50_ms": "latency p50, ms",
    "p90_ms": "latency p90, ms",
    "p99_ms": "latency p99, ms",
    "throughput_ips": "images/s",
}


def _kept(report: Report, target: str) -> str:
    kept = {artifact.precision for artifact in report.artifacts if artifact.target == target}
    return "/".join(sorted(kept))


def _find(rows: Sequence[FidelityRow], target: str, metric: str) -> FidelityRow | None:
    found = [row for row in rows if row.target == target and row.metric == metric]
    return min(found, key=lambda row: row.value or 0.0) if found else None


def _with_delta(row: FidelityRow | None) -> str:
    if row is None:
        return "-"
    if row.metric == "top1" and row.delta is not None:
        return f"{_number(row.value)} ({row.delta:+.2f})"
    return _number(row.value)


def _sizes(report: Report, targets: Sequence[str]) -> list[str]:
    sizes = [report.size_bytes.get(name) for name in ("reference", *targets)]
    return [f"{size / 1e6:.2f}" if size else "-" for size in sizes]


def _latencies(report: Report, targets: Sequence[str], field: str) -> list[str]:
    cells = []
    for name in ("reference", *targets):
        row = next((row for row in report.latency if row.target == name), None)
        cells.append(_number(getattr(row, field)) if row else "-")
    return cells


def _of_all(count: int, total: int | None) -> str:
    return str(count) if total is None else f"{count} of {total}"


def _decimal(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value != 0 and abs(value) < 0.01:
        return f"{value:.2e}"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"
