"""What NVIDIA's parser and builder make of the TensorRT graphs, model by model.

    python benchmarks/tensorrt_graphs.py [MODEL[@SIZE] ...] [--precision int8] [--json FILE]

Needs the package tensorrt-rtx and no GPU. Weights are random (shapes and kernels do not depend on
them), so the search for INT8 is left out and all attention that can fuse is INT8. Each case runs in
a process of its own, whose peak memory is shown. Nothing here is a latency.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

MODELS = (
    "vit-tiny",
    "vit-base",
    "deit-tiny-distilled",
    "swin-tiny",
    "swinv2-tiny",
    "dinov2-small@224",
    "dinov2-small@518",
    "dinov2-small-reg@224",
    "fastvit-t8",
    "timm:vit_base_patch32_clip_224",
    "timm:vit_base_patch16_siglip_224",
)
PRECISIONS = ("fp16", "int8")
COLUMNS = ("model", "precision", "parse", "build", "engine MB", "build s", "peak GB")
COUNTS = (
    "INT8 products",
    "quantised",
    "MACs in INT8, %",
    "attention fused",
    "in INT8",
    "lint errors",
    "warnings",
)


def main() -> None:
    """Parse the arguments, run every case in a child, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL[@SIZE]")
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--json", type=Path, help="append each row to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(row_of(options.models[0], options.precision[0])))
        return
    print(" | ".join((*COLUMNS, *COUNTS)))
    for row in rows_of(options.models, options.precision or PRECISIONS):
        print(" | ".join(str(row.get(name, "-")) for name in (*COLUMNS, *COUNTS)), flush=True)
        if "why" in row:
            print(f"  {row['why']}", flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


def rows_of(models: list[str], precisions: list[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per case."""
    for model in models:
        for precision in precisions:
            command = [sys.executable, __file__, model, "--precision", precision, "--one"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = done.stdout.strip().splitlines()
            if done.returncode or not lines:
                why = (done.stderr.strip().splitlines() or ["no output"])[-1]
                yield {"model": model, "precision": precision, "parse": "failed", "why": why}
            else:
                yield json.loads(lines[-1])


def row_of(named: str, precision: str) -> dict[str, Any]:
    """Return what one model in one precision comes to."""
    from vitdeploy.errors import ExportError
    from vitdeploy.targets import BuildRequest, load_target

    model, int8_macs_percent = quantized_model(named, precision)
    row: dict[str, Any] = {"model": named, "precision": precision}
    with tempfile.TemporaryDirectory() as folder:
        target = load_target("trt-rtx")
        request = BuildRequest("model", model, precision, Path(folder), None)
        start = time.perf_counter()
        try:
            artifact = target.build(request)
        except ExportError as error:
            stage = "parse" if "does not read" in str(error) else "build"
            return {**row, "parse": "ok", stage: "refused", "why": str(error)}
        seconds = time.perf_counter() - start
        fusion = json.loads((Path(folder) / "model.fusion.json").read_text())
        row |= {
            "parse": "ok",
            "build": "ok",
            "engine MB": round(artifact.path.stat().st_size / 1e6, 1),
            "build s": round(seconds, 1),
            "INT8 products": f"{fusion['int8_products']}/{fusion['products']}",
            "quantised": fusion["quantized_products"],
            "attention fused": f"{fusion['fused_attention']}/{fusion['attention']}",
            "in INT8": fusion["int8_attention"],
            **lint_counts(Path(folder) / "model.strong.onnx"),
        }
        if int8_macs_percent is not None:
            row["MACs in INT8, %"] = round(int8_macs_percent, 1)
        if fusion["fallbacks"]:
            row["why"] = "; ".join(f"{f['name']}: {f['reason']}" for f in fusion["fallbacks"][:2])
    row["peak GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    return row


def quantized_model(named: str, precision: str) -> tuple[Any, float | None]:
    """Return the graph of a model with random weights, and its share of MACs with Q/DQ if any.

    The share is of the products with weights; small convolutions and single rows have no Q/DQ.
    """
    from vitdeploy.compress.int8 import quantize_int8
    from vitdeploy.models import load
    from vitdeploy.models.spec import LoadOptions
    from vitdeploy.onnx_export import onnx_from_part
    from vitdeploy.recipe import Int8Section
    from vitdeploy.targets.tensorrt_graphs import OPSET, quant_scheme

    source, _, size = named.partition("@")
    options = LoadOptions(source, random_weights=True, image_size=int(size) if size else None)
    part = load(options).parts[0]
    shape = (3, *part.inputs[0].shape[1:])
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    model = onnx_from_part(part, pixels, "dynamic", OPSET)
    if precision != "int8":
        return model, None
    # random weights say nothing of noise
    scheme = replace(quant_scheme(), attention_noise_floor=float("inf"))
    section = Int8Section(
        placement="all", folds="off", clip="minmax", rounding="nearest", search_seconds=3600
    )
    feeds = [{part.inputs[0].name: pixels[:1]}]
    found = quantize_int8(model, scheme, lambda: iter(feeds), section)
    return found.model, found.int8_macs_percent


def lint_counts(path: Path) -> dict[str, int]:
    """Return the findings of our lint on a strong graph, for TensorRT 10.3.

    The engine's profile is set when it is built, so a dynamic batch is no finding.
    """
    from vitdeploy.lint import Known, lint_file

    report = lint_file(path, "10.3", Known(profiled=frozenset({"pixel_values"})))
    return {"lint errors": report.errors, "warnings": report.warnings}


if __name__ == "__main__":
    main()
