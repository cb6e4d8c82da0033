"""Full-size architectures with random weights, INT8, both targets: parity, fidelity, cost.

    python benchmarks/random_models.py [--only NAME] [--calib PATH] [--samples N]

The weights are drawn with --random-weights, so the fidelity is that of centred outputs and says
that the path works, not what a trained model would keep. One process a model, so that peak memory
is that model's own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = (
    ("vit-tiny", None),
    ("deit-tiny-distilled", None),
    ("swin-tiny", None),
    ("dinov2-small", 224),
    ("dinov2-small", 518),
    ("fastvit-t8", None),
)


def main() -> None:
    """Export each model in a process of its own and print one row a target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", help="one alias")
    parser.add_argument("--calib", help="calibration images; the packaged photographs by default")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing")
    options = parser.parse_args()
    print(
        f"{'model':22}{'pixels':>7} {'target':9}{'parity':>9}{'cos mean':>10}{'cos min':>9}"
        f"{'SQNR':>7}{'INT8 %':>8}{'size':>7}{'speed':>7}{'wall s':>8}{'peak GiB':>9}"
    )
    models = MODELS
    if options.only:
        models = tuple(m for m in MODELS if m[0] == options.only) or ((options.only, None),)
    for name, pixels in models:
        for row in rows_of(name, pixels, options):
            print(row, flush=True)


def rows_of(name: str, pixels: int | None, options: argparse.Namespace) -> list[str]:
    """Return the table rows of one model."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "vitdeploy", "export", name, "--random-weights", "--int8"),
            *("--target", "onnx", "--target", "openvino", "--output", str(Path(folder) / "out")),
            *("--calib-samples", str(options.samples), "--quiet"),
            *("--measure-seconds", str(options.seconds)),
        ]
        command += ["--image-size", str(pixels)] if pixels else []
        command += ["--calib", options.calib, "--eval", "synthetic"] if options.calib else []
        start = time.perf_counter()
        subprocess.run(command, check=True)
        wall = time.perf_counter() - start
        report = json.loads((Path(folder) / "out/report.json").read_text())
    peak = max(stage["peak_rss_bytes"] for stage in report["stages"]) / 2**30
    parity = max(row["max_relative"] for row in report["parity"])
    shares = {row["target"]: row["int8_macs_percent"] for row in report["artifacts"]}
    rows = []
    for target, speedup in report["speedup"].items():
        values: dict[str, float] = {}
        for row in report["fidelity"]:
            if row["target"] == target:
                worst = min(values.get(row["metric"], row["value"]), row["value"])
                values[row["metric"]] = worst
        size = report["size_bytes"][target] / report["size_bytes"]["reference"]
        rows.append(
            f"{name:22}{report['model']['image_size'][0]:7} {target:9}{parity:9.1e}"
            f"{values['cosine_mean']:10.5f}{values['cosine_min']:9.5f}{values['sqnr_db']:7.1f}"
            f"{shares[target]:8.1f}{size:7.3f}{speedup or 0:6.2f}x{wall:8.1f}{peak:9.2f}"
        )
    return rows


if __name__ == "__main__":
    main()
