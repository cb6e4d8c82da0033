"""What `vitdeploy profile` is worth: its interval, the utilisation it finds, its own overhead.

    python benchmarks/profiler.py repeat A B [--runs 11] [--seconds 10] [--threads 1]
    python benchmarks/profiler.py utilisation --work DIR [--only NAME] [--seconds 20] [--threads N]
    python benchmarks/profiler.py overhead ARTEFACT [--seconds 10]

`repeat` profiles the same artefacts in one process after another and counts how often the interval
of one run's ratio holds the ratio of the next. `utilisation` builds FP32, BF16 and INT8 for
OpenVINO (random weights; DIR keeps them) and sets them against this machine's ceilings. `overhead`
times the artefact's engine bare, in a loop that reads the clock twice, and in the profiler, in
turns, at the batch that takes about a millisecond.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.openvino_core import openvino_core
from vitdeploy.profiling import ProfileOptions, profile_artifacts
from vitdeploy.profiling.engines import Setup
from vitdeploy.profiling.stations import LocalStation
from vitdeploy.profiling.statistics import ratio_of
from vitdeploy.profiling.subjects import Source, sources_of

MODELS = (
    *(("vit-base", None), ("swin-tiny", None), ("dinov2-small", 518)),
    *(("fastvit-t8", None), ("sam-vitb", None)),
)
PRECISIONS = ("fp32", "bf16", "int8")
TURN_SECONDS = 0.1


def main() -> None:
    """Print one of the three tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    repeat = commands.add_parser("repeat")
    repeat.add_argument("artefacts", nargs="+")
    repeat.add_argument("--runs", type=int, default=11)
    repeat.set_defaults(lines=repeat_lines)
    utilisation = commands.add_parser("utilisation")
    utilisation.add_argument("--work", type=Path, required=True, help="keeps what is built")
    utilisation.add_argument("--only", help="one alias")
    utilisation.set_defaults(lines=utilisation_lines)
    overhead = commands.add_parser("overhead")
    overhead.add_argument("artefact")
    overhead.set_defaults(lines=overhead_lines)
    for command in (repeat, utilisation, overhead):
        command.add_argument("--seconds", type=float, default=10.0, help="of timing, each")
        command.add_argument("--threads", type=int)
    options = parser.parse_args()
    for line in options.lines(options):
        print(line, flush=True)


def repeat_lines(options: argparse.Namespace) -> Iterator[str]:
    """Yield the ratio of each run, and how often an interval holds the next run's."""
    command = [sys.executable, "-m", "vitdeploy", "profile", *options.artefacts, "--json"]
    command += ["--seconds", str(options.seconds)]
    command += ["--threads", str(options.threads)] if options.threads else []
    ratios: dict[str, list[dict[str, Any]]] = {}
    for run in range(options.runs):
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        profile = json.loads(answer.stdout)["profile"]
        noise = "; ".join(profile["machine"]["findings"]) or "quiet"
        for name, ratio in profile["speedup"].items():
            if name == profile["reference"]:
                continue
            ratios.setdefault(name, []).append(ratio)
            width = 100 * (ratio["high"] - ratio["low"]) / ratio["value"]
            shown = f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
            yield f"run {run + 1:2}  {name:24} {shown}  width {width:4.1f} %  {noise}"
    for name, found in ratios.items():
        pairs = list(itertools.pairwise(found))
        held = sum(now["low"] <= later["value"] <= now["high"] for now, later in pairs)
        widths = [100 * (one["high"] - one["low"]) / one["value"] for one in found]
        yield (
            f"{name}: {held} of {len(pairs)} intervals hold the next run's ratio; width "
            f"{np.median(widths):.1f} % in the median, {max(widths):.1f} % at most"
        )


def utilisation_lines(options: argparse.Namespace) -> Iterator[str]:
    """Yield a row of each model and precision: what it computes, and how near the ceilings."""
    heading = (
        *("model", "part", "precision", "GMACs", "p50 ms", "limit ms"),
        *("compute %", "bandwidth %", "utilisation %", "products %"),
    )
    for number, (name, size) in enumerate(MODELS):
        if options.only not in (None, name):
            continue
        bundles = [built(options.work, name, size, precision) for precision in PRECISIONS]
        asked = ProfileOptions(seconds=options.seconds, threads=options.threads, with_roofline=True)
        result = profile_artifacts(bundles, asked)
        assert result.roofline is not None
        if options.only or number == 0:
            ceilings = result.roofline.ceilings
            tops = {kind: round(value, 3) for kind, value in ceilings.tops.items() if value}
            yield f"ceilings: {tops} TOPS, {ceilings.bandwidth_gbs:.1f} GB/s"
            yield " | ".join(heading)
        for row in result.roofline.artefacts:
            yield " | ".join(
                (
                    *(f"{name} {size or ''}".strip(), row.part, row.precision),
                    *(f"{sum(row.macs.values()) / 1e9:.2f}", f"{row.p50_ms:.2f}"),
                    *(f"{row.limit_ms:.2f}", f"{row.compute_percent:.0f}"),
                    *(f"{row.bandwidth_percent:.0f}", f"{row.utilisation_percent:.0f}"),
                    f"{row.products_percent:.0f}",
                )
            )
        for note in result.notes:
            yield f"  note: {note}"


def built(work: Path, name: str, size: int | None, precision: str) -> Path:
    """Return the bundle of a model in one precision, exported where it is not there yet."""
    import vitdeploy
    from vitdeploy.recipe import recipe_from_dict

    folder = work / f"{name}-{precision}"
    if not folder.exists():
        recipe = recipe_from_dict(
            {
                "model": {"source": name, "random_weights": True, "image_size": size},
                "precision": precision,
                "targets": ["openvino"],
                "calibration": {"path": "synthetic", "samples": 32},
                "evaluation": {"path": "synthetic", "samples": 4},
                "measure": {"seconds": 0.1, "search_seconds": 10.0},
                "int8": {"search_seconds": 60.0},
            }
        )
        vitdeploy.run(recipe, output=folder)
    return folder


def overhead_lines(options: argparse.Namespace) -> Iterator[str]:
    """Yield what a run takes in the profiler and bare, and the ratio of the two."""
    for source in sources_of(options.artefact, ProfileOptions(), Path.cwd()):
        station = LocalStation(source, Setup(threads=options.threads or 1))
        station.open()
        batch = batch_of_a_millisecond(station)
        bare = bare_call(source, batch, options.threads or 1)
        profiled_ms, bare_ms = [], []
        end = time.perf_counter() + options.seconds
        while time.perf_counter() < end:
            runs, seconds = bare()
            bare_ms.append(1000 * seconds / runs)
            slot = station.slot(batch, TURN_SECONDS)
            profiled_ms.append(float(np.mean(slot.latencies_ms)))
        ratio = ratio_of(np.asarray(profiled_ms), np.asarray(bare_ms))
        assert ratio.low is not None
        assert ratio.high is not None
        yield (
            f"{source.name}, batch {batch}: bare {np.median(bare_ms):.4f} ms a run, in the "
            f"profiler {np.median(profiled_ms):.4f} ms; overhead {100 * (ratio.value - 1):+.2f} % "
            f"({100 * (ratio.low - 1):+.2f} to {100 * (ratio.high - 1):+.2f})"
        )
        station.close()


def batch_of_a_millisecond(station: LocalStation) -> int:
    """Return the batch whose run takes about a millisecond, warmed up."""
    run_seconds = station.warm_up(1).run_seconds
    batch = max(1, round(1e-3 / run_seconds))
    station.warm_up(batch)
    return batch


def bare_call(source: Source, batch: int, threads: int) -> Any:
    """Return what runs the engine for a turn with nothing around it: (runs, seconds)."""
    feeds = source.feeds_at(batch)
    if source.engine == "onnxruntime":
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.enable_mem_pattern = False
        session = ort.InferenceSession(
            str(source.path), settings, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]

        def run() -> object:
            return session.run(names, feeds)

    else:
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        compiled = openvino_core().compile_model(source.path, "CPU", {**config, **source.settings})
        request = compiled.create_infer_request()

        def run() -> object:
            return request.infer(feeds)

    def turn() -> tuple[int, float]:
        run()
        runs = max(1, round(TURN_SECONDS / 1e-3))
        start = time.perf_counter()
        for _ in range(runs):
            run()
        return runs, time.perf_counter() - start

    return turn


if __name__ == "__main__":
    main()
