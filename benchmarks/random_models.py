"""Full-size architectures with random weights, INT8, both targets: parity, fidelity, cost.

    python benchmarks/random_models.py [--only NAME] [--calib PATH] [--samples N]
    python benchmarks/random_models.py --peers [--only NAME] [--samples N] [--evaluation N]

The weights are drawn with --random-weights, so the fidelity is that of centred outputs and says
that the path works, not what a trained model would keep. One process a model, so that peak memory
is that model's own. With --peers larger models are quantised by vitdeploy, ORT's `quantize_static`
and NNCF's default, and the SQNR of their outputs, centred over the images, stands side by side.
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

PEER_MODELS = (
    ("vit-base", None),
    ("swin-base", None),
    ("dinov2-small", 518),
    ("dinov2-base", 518),
    ("fastvit-sa12", None),
)
PEER_METHODS = ("vitdeploy onnx", "vitdeploy trt scheme", "ORT u8s8", "ORT s8s8", "NNCF default")


def main() -> None:
    """Export each model in a process of its own and print one row a target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", help="one alias")
    parser.add_argument("--calib", help="calibration images; the packaged photographs by default")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--peers", action="store_true", help="compare with ORT and NNCF instead")
    parser.add_argument("--evaluation", type=int, default=32, help="images the peers are judged on")
    parser.add_argument("--methods", default=",".join(PEER_METHODS), help="of --peers, with commas")
    parser.add_argument("--image-size", type=int, help="for the model of --only")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing")
    options = parser.parse_args()
    if options.one:
        print_peers(options.only, options.image_size, options)
        return
    if options.peers:
        run_peers(options)
        return
    print(
        f"{'model':22}{'pixels':>7} {'target':9}{'parity':>9}{'cos mean':>10}{'cos min':>9}"
        f"{'SQNR':>7}{'INT8 %':>8}{'size':>7}{'speed':>7}{'wall s':>8}{'peak GiB':>9}"
    )
    for name, pixels in asked(MODELS, options):
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


def asked(
    models: tuple[tuple[str, int | None], ...], options: argparse.Namespace
) -> tuple[tuple[str, int | None], ...]:
    """Return all models, or the one of --only."""
    if options.only is None:
        return models
    own = ((options.only, options.image_size),)
    if options.image_size is not None:
        return own
    return tuple(model for model in models if model[0] == options.only) or own


def run_peers(options: argparse.Namespace) -> None:
    """Print the table of all methods, each model in a process of its own."""
    print(f"{'model':22}{'pixels':>7} {'method':22}{'SQNR centred':>13}{'wall s':>8}", flush=True)
    for name, pixels in asked(PEER_MODELS, options):
        command = [sys.executable, __file__, "--one", "--only", name]
        command += ["--samples", str(options.samples), "--evaluation", str(options.evaluation)]
        command += ["--methods", options.methods]
        command += ["--image-size", str(pixels)] if pixels else []
        command += ["--calib", options.calib] if options.calib else []
        status = subprocess.run(command, check=False).returncode
        if status:
            print(f"{name:22} ended with status {status}; -9 is want of memory", flush=True)


def print_peers(name: str, pixels: int | None, options: argparse.Namespace) -> None:
    """Print a row a method for one model."""
    import numpy as np

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks import int8_fidelity as fidelity
    from vitdeploy.data import ImageLoader, scan_images, synthetic_set
    from vitdeploy.models import load
    from vitdeploy.models.spec import LoadOptions
    from vitdeploy.onnx_export import onnx_from_part
    from vitdeploy.recipe import Int8Section
    from vitdeploy.targets.onnx import runner_from_model

    loaded = load(LoadOptions(name, random_weights=True, image_size=pixels))
    preprocess = loaded.spec.preprocess

    def read(images: object) -> np.ndarray:
        return np.concatenate([p for p, _ in ImageLoader(images, preprocess).batches(8)])

    several = scan_images(options.calib) if options.calib else synthetic_set(options.samples, 0)
    calibration = read(several.sample(min(options.samples, len(several)), 0))
    evaluation = read(synthetic_set(options.evaluation, 1))
    model = onnx_from_part(loaded.parts[0], calibration[:3], "dynamic", 20)
    with runner_from_model(model) as runner:
        expected = fidelity.first_output(runner, evaluation).astype(np.float64)
    signal = np.square(expected - expected.mean(axis=0)).sum()
    labels = np.zeros(len(evaluation))
    subject = fidelity.Subject(name, model, calibration, evaluation, labels, Int8Section())
    for method in options.methods.split(","):
        start = time.perf_counter()
        try:
            found, _ = fidelity.METHODS[method](model, subject)
        except Exception as error:  # noqa: BLE001 - a peer's failure is a result too
            print(f"{name:22}{preprocess.size[0]:7} {method:22} failed: {error}", flush=True)
            continue
        noise = found - expected
        noise = np.square(noise - noise.mean(axis=0)).sum()
        print(
            f"{name:22}{preprocess.size[0]:7} {method:22}{10 * np.log10(signal / noise):13.1f}"
            f"{time.perf_counter() - start:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
