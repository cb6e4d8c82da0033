"""A report with every field filled. All figures are invented; none was measured."""

import hashlib
import itertools
from typing import Any

from vitdeploy.report import Report

UNTIMED = "a distance between both models; the reference has no value of its own"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fidelity(target: str, metric: str, reference: float | None, value: float, unit: str) -> dict:
    row: dict[str, Any] = {
        "target": target,
        "part": "model",
        "output": "logits",
        "metric": metric,
        "reference": reference,
        "value": value,
        "delta": None if reference is None else value - reference,
        "unit": unit,
        "n": 360,
    }
    if reference is None:
        row.update(reference_reason=UNTIMED, delta_reason=UNTIMED)
    return row


def latency(target: str, engine: str, precision: str, times: tuple, samples: int = 2000) -> dict:
    p50, p90, p99 = times
    return {
        "target": target,
        "part": "model",
        "engine": engine,
        "precision": precision,
        "batch": 1,
        "threads": 4,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "p99_ms_reason": None if p99 else f"{samples} samples; 100 are needed",
        "mean_ms": p50 * 1.02,
        "samples": samples,
        "throughput_ips": 1000 / p50,
    }


def sample(**changes: Any) -> Report:
    """Return the sample report with the top-level fields in `changes` replaced."""
    scores = {
        "onnx": (98.33, 97.78, 99.17, 0.99871, 0.98412, 27.4, 0.412),
        "openvino": (98.33, 98.06, 99.44, 0.99902, 0.98873, 29.1, 0.357),
    }
    rows = []
    for target, (fp32, top1, agreed, mean, worst, sqnr, diff) in scores.items():
        rows += [
            fidelity(target, "top1", fp32, top1, "percent"),
            fidelity(target, "top5", 100.0, 100.0, "percent"),
            fidelity(target, "agreement", 100.0, agreed, "percent"),
            fidelity(target, "cosine_mean", 1.0, mean, "cosine"),
            fidelity(target, "cosine_min", 1.0, worst, "cosine"),
            fidelity(target, "sqnr_db", None, sqnr, "dB"),
            fidelity(target, "max_abs_diff", 0.0, diff, "absolute"),
        ]
    data: dict[str, Any] = {
        "vitdeploy_version": "0.1.0",
        "created": "2025-01-31T12:00:00Z",
        "model": {
            "name": "vit-digits",
            "family": "vit",
            "source": "package:vit-digits",
            "task": "classification",
            "weights": "packaged",
            "image_size": [32, 32],
            "parameters": 312_586,
            "gmacs": 0.0205,
        },
        "precision": {"requested": "int8"},
        "artifacts": [
            {
                "target": target,
                "part": "model",
                "precision": "int8",
                "path": f"{target}/{path}",
                "bytes": size,
                "sha256": digest(target),
                "int8_macs_percent": share,
            }
            for target, path, size, share in (
                ("onnx", "model.onnx", 421_337, 97.2),
                ("openvino", "model.xml", 602_114, 98.8),
            )
        ],
        "stamps": ["calibration: generic"],
        "calibration": {
            "name": "photos",
            "origin": "generic",
            "images": 36,
            "skipped": 0,
            "digest": digest("photos"),
        },
        "evaluation": {
            "name": "digits/eval",
            "origin": "packaged",
            "images": 360,
            "skipped": 1,
            "digest": digest("eval"),
        },
        "fidelity": rows,
        "latency": [
            latency("reference", "onnxruntime 1.0", "fp32", (1.21, 1.33, 1.71)),
            latency("onnx", "onnxruntime 1.0", "int8", (0.74, 0.79, 1.02)),
            latency("openvino", "openvino 1.0", "int8", (0.482, 0.551, None), samples=80),
        ],
        "speedup": {"onnx": 1.21 / 0.74, "openvino": 1.21 / 0.482},
        "size_bytes": {"reference": 1_262_550, "onnx": 421_337, "openvino": 602_114},
        "parity": [
            {
                "part": "model",
                "batch": batch,
                "max_abs_diff": 3.1e-6,
                "max_relative": 2.2e-6,
                "tolerance": 1e-4,
                "passed": True,
            }
            for batch in (1, 2)
        ],
        "gates": [
            {"name": "max_drop_points:onnx:top1", "limit": 1.0, "value": 0.55, "passed": True},
            {"name": "max_drop_points:openvino:top1", "limit": 1.0, "value": 0.27, "passed": True},
            {"name": "min_speedup:openvino", "limit": 1.5, "value": 2.51, "passed": True},
        ],
        "stages": [
            {"name": name, "seconds": seconds, "peak_rss_bytes": rss * 10**6}
            for name, seconds, rss in (
                ("load", 1.91, 512),
                ("export", 6.42, 891),
                ("parity", 0.38, 902),
                ("quantize onnx", 4.87, 1033),
                ("build openvino", 2.2, 1121),
                ("fidelity", 1.04, 1129),
                ("latency", 10.01, 1129),
            )
        ],
        "search": [
            {
                "target": "openvino",
                "part": "model",
                "seconds": 41.5,
                "candidates": 310,
                "skipped": ["GPTQ rounding of 12 products"],
            }
        ],
        "environment": {
            "cpu": "An Imaginary CPU @ 3.00GHz",
            "cpu_features": "vnni",
            "cores": "4",
            "python": "3.11.9",
            "torch": "2.9.0",
            "onnxruntime": "1.20.0",
        },
        "recipe_sha256": digest("recipe"),
        "notes": ["The evaluation set is small: one image is 0.28 points."],
    }
    return Report.model_validate({**data, **changes})


def failing_sample() -> Report:
    """Return a report of a run in which much went wrong or was not measured."""
    base = sample()
    slow = "int8 on onnx is 1.3x slower than FP32 on ONNX Runtime here; use it for its size only."
    untimed = "the engine cannot run on this machine"
    nothing = {
        name: value
        for field in ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "throughput_ips", "threads")
        for name, value in ((field, None), (f"{field}_reason", untimed))
    }
    rows = [row.model_dump() for row in base.latency]
    rows[1].update(p50_ms=1.57, p90_ms=2.4, p99_ms=9.7)
    rows[2] = {**rows[2], **nothing, "samples": 0}
    return sample(
        model={**base.model.model_dump(), "name": "<script>alert('x')</script> & \"co\""},
        stamps=["random-weights", "calibration: synthetic"],
        latency=rows,
        speedup={"onnx": 0.77, "openvino": None},
        speedup_reason={"openvino": untimed},
        calibration=None,
        calibration_reason="int8 ranges came with the file | as `given`",
        gates=[
            {"name": "min_speedup:onnx", "limit": 1.5, "value": 0.77, "passed": False},
            {
                "name": "min_speedup:openvino",
                "limit": 1.5,
                "value": None,
                "value_reason": f"{untimed}\x00",
                "passed": False,
            },
            {"name": "max_drop_points:onnx:top1", "limit": 1.0, "value": 0.55, "passed": True},
        ],
        notes=[slow, "<b>bold</b> | pipe"],
    )


def two_part_sample() -> Report:
    """Return a report of a model with two parts and no gates."""
    base = sample()
    parts = ("image_encoder", "mask_decoder")

    def doubled(rows: Any) -> list[dict[str, Any]]:
        return [{**row.model_dump(), "part": part} for row, part in itertools.product(rows, parts)]

    return sample(
        artifacts=doubled(base.artifacts),
        fidelity=doubled(base.fidelity),
        latency=doubled(base.latency),
        parity=doubled(base.parity),
        gates=[],
        stamps=[],
        created=None,
    )
