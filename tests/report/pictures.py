"""A sample report with everything that has a picture: invented, seeded, of a real one's size."""

import base64
import io
import json

import numpy as np
from PIL import Image

from tests.report.samples import sample
from vitdeploy.profiling import report_of_profile
from vitdeploy.report import Report
from vitdeploy.report.profile import ProfileResult


def picture(seed: int, size: int = 160) -> str:
    rng = np.random.default_rng(seed)
    waves = np.add.outer(np.sin(np.arange(size) / rng.uniform(5, 30)), np.cos(np.arange(size) / 9))
    pixels = np.stack([waves * rng.uniform(20, 60) + 120 for _ in range(3)], axis=2)
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def pictured_sample(*, masks: bool = False) -> Report:
    """Return the sample with distributions, blocks, outliers and worst images."""
    rng = np.random.default_rng(0)
    rows = []
    for row in (row.model_dump() for row in sample().latency):
        tail = np.sort(rng.gamma(2.0, 0.03, 400))
        samples = row["p50_ms"] * (0.95 + tail)
        row["quantiles_ms"] = np.percentile(samples, range(0, 101, 5)).tolist()
        rows.append(row)
    targets = ("onnx", "openvino")
    blocks = [f"blocks.{number}" for number in range(12)] + ["other"]
    sensitivity = [
        {"target": target, "part": "model", "block": block, "noise": float(n), "products": 4}
        for target in targets
        for block, n in zip(blocks, rng.gamma(1.0, 1e-4, len(blocks)), strict=True)
    ]
    outliers = [
        {
            "target": "onnx",
            "part": "model",
            "norm": f"blocks.{number // 2}.norm{number % 2 + 1}",
            "before": float(before),
            "after": float(max(1.2, before**0.4)),
        }
        for number, before in enumerate(rng.lognormal(2.2, 0.8, 24))
    ]
    worst = [
        {
            "target": target,
            "image": f"image-{number:03d}.png",
            "metric": "mask_iou" if masks else "cosine",
            "value": 0.9 - 0.05 * number,
            "picture": picture(number),
            "reference": "mask of 1204 pixels" if masks else str(number),
            "own": "mask of 1310 pixels" if masks else str((number * 3) % 10),
            "truth": None if masks else str(number),
            "reference_picture": picture(number + 20, 240) if masks else None,
            "own_picture": picture(number + 40, 240) if masks else None,
        }
        for target in targets
        for number in range(4 if masks else 6)
    ]
    return sample(latency=rows, sensitivity=sensitivity, outliers=outliers, worst_images=worst)


def profiled_sample() -> Report:
    """Return the report of a profile with a roofline, all figures invented."""
    timing = {
        "part": "model", "engine": "engine 1.0", "device": "cpu", "precision": "int8", "batch": 1,
        "streams": 1, "threads": 2, "samples": 400, "rounds": 20, "p99_ms": 1.4, "jitter_ms": 0.02,
        "spread_percent": 2.0, "energy_mj_reason": "no counter",
    }  # fmt: skip
    load = {
        "part": "model", "streams": 1, "size_bytes": 421_337, "load_ms": 30.0, "first_ms": 2.0,
        "warmup_runs": 9, "is_warm": True, "engine_peak_bytes": 15_000_000,
        "process_peak_bytes_reason": "engines share a process",
    }  # fmt: skip
    times = {"a:onnx": 1.0, "b:onnx": 0.5}
    result = {
        "reference": "a:onnx",
        "device": "cpu",
        "is_isolated": False,
        "seconds": 2.0,
        "timings": [
            {
                **timing,
                "name": name,
                "p50_ms": ms,
                "p90_ms": 1.2 * ms,
                "mean_ms": 1.05 * ms,
                "throughput_ips": 1000 / ms,
                "quantiles_ms": [ms * (0.9 + 0.02 * step) for step in range(21)],
                "ratio": {"value": 1 / ms, "low": 0.96 / ms, "high": 1.04 / ms},
            }
            for name, ms in times.items()
        ],
        "speedup": {n: {"value": 1 / ms, "low": 0.9, "high": 2.1} for n, ms in times.items()},
        "loads": [{**load, "name": name} for name in times],
        "machine": {
            "is_noisy": False,
            "spread_percent": 2.0,
            **{
                f"{name}_reason": "invented"
                for name in (
                    "pinned_cpus", "load_1m", "steal_percent", "others_percent",
                    "throttled_percent", "frequency_mhz", "idle_watts",
                )
            },
        },
        "roofline": {
            "ceilings": {
                "tops": {"fp32": 0.09, "bf16": 0.8, "int8": 0.84},
                "bandwidth_gbs": 9.0,
                "threads": 2,
                "measured_with": "engine 1.0",
            },
            "artefacts": [
                {
                    "name": name, "part": "model", "precision": "int8", "batch": 1,
                    "macs": {"int8": 32_000_000}, "bytes": 600_000, "p50_ms": ms, "limit_ms": 0.2,
                    "compute_percent": 15.0 / ms, "bandwidth_percent": 6.0,
                    "utilisation_percent": 20.0 / ms, "products_percent": 80.0, "layers": [],
                }
                for name, ms in times.items()
            ],
        },
    }  # fmt: skip
    return report_of_profile(ProfileResult.model_validate_json(json.dumps(result)))
