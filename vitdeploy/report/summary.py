"""What a reader looks at first (one `Headline` a target), and how figures are worded.

Pure functions of a `Report`; the layout is the writers' matter.
"""

from dataclasses import dataclass

from vitdeploy.report.schema import PERCENTAGES, FidelityRow, LatencyRow, Report

REFERENCE = "reference"
"""The target name under which the FP32 ONNX is timed and sized."""

METRIC_LABELS = {
    "top1": "Top-1",
    "top5": "Top-5",
    "agreement": "Agreement with FP32",
    "cosine_mean": "Cosine, mean",
    "cosine_min": "Cosine, worst image",
    "sqnr_db": "SQNR",
    "max_abs_diff": "Max. abs. difference",
    "mask_iou_mean": "Mask IoU, mean",
    "mask_iou_min": "Mask IoU, worst mask",
    "boundary_iou_mean": "Boundary IoU, mean",
    "mask_choice_agreement": "Same mask shown",
    "iou_prediction_error": "Predicted IoU, mean error",
    "truth_iou_mean": "Mask IoU with the truth",
    "knn_top1": "k-NN top-1",
    "recall_at_1": "Recall at 1",
    "cosine": "Cosine",
    "mask_iou": "Mask IoU",
}
TARGET_LABELS = {
    REFERENCE: "FP32 reference",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "trt": "TensorRT",
    "trt-rtx": "TensorRT-RTX",
}
STAMP_MEANINGS = {
    "random-weights": "Random weights: the figures show how the numerics hold, not accuracy.",
    "calibration: generic": "Calibrated on generic photographs, not on images of this task.",
    "calibration: synthetic": "Calibrated on rendered pictures, not on photographs.",
}
# The first of these that was measured is the headline.
_HEADLINE_METRICS = ("top1", "knn_top1", "recall_at_1", "mask_iou_mean", "agreement", "cosine_mean")
# Both models have these by themselves, so that their difference is a loss or a gain; all other
# metrics are distances, whose value says everything.
_MEASURED_ON_BOTH = PERCENTAGES - {"agreement"}


@dataclass(frozen=True)
class Headline:
    """The key figures of one target."""

    target: str
    precision: str
    """As kept; several, comma-separated, where the parts differ."""
    fidelity: FidelityRow | None
    """The worst row of the first headline metric that was measured."""
    speedup: float | None
    speedup_reason: str
    size_bytes: int | None
    reference_bytes: int | None
    p50_ms: float | None
    """Of the only part; None where there are several, or it was not measured."""
    reference_p50_ms: float | None
    int8_macs_percent: float | None
    """The lowest of the parts; None where there is no INT8."""


def headlines(report: Report) -> tuple[Headline, ...]:
    """Return the key figures of each target, in the order of the artefacts."""
    return tuple(_headline(report, target) for target in report.targets)


def _headline(report: Report, target: str) -> Headline:
    artifacts = [row for row in report.artifacts if row.target == target]
    shares = [row.int8_macs_percent for row in artifacts if row.int8_macs_percent is not None]
    return Headline(
        target=target,
        precision=", ".join(dict.fromkeys(row.precision for row in artifacts)),
        fidelity=headline_fidelity(report, target),
        speedup=report.speedup.get(target),
        speedup_reason=report.speedup_reason.get(target, "not measured"),
        size_bytes=report.size_bytes.get(target),
        reference_bytes=report.size_bytes.get(REFERENCE),
        p50_ms=_only_p50_ms(report, target),
        reference_p50_ms=_only_p50_ms(report, REFERENCE),
        int8_macs_percent=min(shares, default=None),
    )


def headline_fidelity(report: Report, target: str) -> FidelityRow | None:
    """Return the lowest value of the most telling metric of a target, over parts and outputs."""
    metrics: tuple[str, ...] = _HEADLINE_METRICS
    if report.model.weights == "random":  # classes drawn by lot agree or not by chance
        metrics = tuple(name for name in metrics if name not in PERCENTAGES)
    for metric in metrics:
        found = [
            (row.value, index, row)
            for index, row in enumerate(report.fidelity)
            if (row.target, row.metric) == (target, metric) and row.value is not None
        ]
        if found:
            return min(found)[2]
    return None


def _only_p50_ms(report: Report, target: str) -> float | None:
    rows: list[LatencyRow] = [row for row in report.latency if row.target == target]
    return rows[0].p50_ms if len(rows) == 1 else None


def metric_label(metric: str) -> str:
    """Return a metric's name for people."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def target_label(target: str) -> str:
    """Return a target's name for people."""
    return TARGET_LABELS.get(target, target)


def format_metric(row: FidelityRow, value: float) -> str:
    """Return the value of a metric with its unit: `97.50 %`, `0.99981`, `31.2 dB`."""
    if row.metric in PERCENTAGES or row.unit == "percent":
        return f"{value:.2f} %"
    if row.unit == "dB":
        return f"{value:.1f} dB"
    if row.unit == "absolute":
        return f"{value:.3g}"
    return f"{value:.5f}"


def format_delta(row: FidelityRow) -> str:
    """Return what was lost or won in points: `-0.25 points`; empty for a mere distance."""
    if row.delta is None or row.metric not in _MEASURED_ON_BOTH:
        return ""
    text = f"{row.delta:+.2f}" if round(row.delta, 2) else "±0.00"
    return text.replace("-", "\N{MINUS SIGN}") + " points"


def format_bytes(size_bytes: int) -> str:
    """Return a size in SI units, three figures: `342 kB`, `86.5 MB`."""
    size, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def format_ms(milliseconds: float) -> str:
    """Return a latency in milliseconds, three figures."""
    digits = 0 if milliseconds >= 99.95 else 1 if milliseconds >= 9.995 else 2
    return f"{milliseconds:.{digits}f} ms" if milliseconds >= 0.1 else f"{milliseconds:.3f} ms"


def format_speedup(ratio: float) -> str:
    """Return how a ratio of latencies (FP32 / artefact) reads: `2.10x faster`."""
    text = f"{max(ratio, 1 / ratio if ratio else ratio):.2f}×"
    if text == "1.00×":
        return "as fast"
    return f"{text} {'faster' if ratio > 1 else 'slower'}"


def format_size_ratio(reference_bytes: int, size_bytes: int) -> str:
    """Return how a size compares with the FP32 ONNX: `3.70x smaller`."""
    if not size_bytes or not reference_bytes:
        return "empty"
    ratio = reference_bytes / size_bytes
    text = f"{max(ratio, 1 / ratio):.2f}×"
    if text == "1.00×":
        return "same size"
    return f"{text} {'smaller' if ratio > 1 else 'larger'}"


def format_count(count: int) -> str:
    """Return a large count, three figures: `5.72 M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
