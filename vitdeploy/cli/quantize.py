"""`vitdeploy quantize`: an FP32 ONNX file from elsewhere to INT8 or INT4."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vitdeploy.cli.options import (
    Calib,
    CalibSamples,
    Eval,
    EvalSamples,
    Force,
    Int4,
    Int4Block,
    Int4MaxSize,
    Int4MinSqnr,
    Int4Mixed,
    Json,
    KeepReference,
    MaxDrop,
    Opset,
    Output,
    Outputs,
    Quiet,
    SearchSeconds,
    Seed,
    Targets,
    TrtVersion,
    int4_section,
    one_precision,
    trt_version_or_default,
)
from vitdeploy.cli.outcome import run_and_show
from vitdeploy.errors import UsageError


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32 ONNX file.")],
    precision: Annotated[
        str | None, typer.Option(help="int8 (the default), w4a16 (int4), or w4a8.")
    ] = None,
    int4: Int4 = False,
    int4_mixed: Int4Mixed = False,
    int4_max_size: Int4MaxSize = None,
    int4_min_sqnr: Int4MinSqnr = None,
    int4_block: Int4Block = 64,
    calib: Calib = None,
    calib_samples: CalibSamples = 256,
    eval_: Eval = None,
    eval_samples: EvalSamples = None,
    target: Targets = None,
    mean: Annotated[str | None, typer.Option(help="Of R,G,B in 0..1; ImageNet's.")] = None,
    std: Annotated[str | None, typer.Option(help="Of R,G,B in 0..1; ImageNet's.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bicubic, bilinear, ...")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Size / size resized to; 1.")] = None,
    crop_mode: Annotated[str | None, typer.Option(help="center, squash or border.")] = None,
    preprocess: Annotated[
        Path | None, typer.Option(help="JSON file with mean, std, interpolation, crop_pct, ...")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Where the file leaves it open.")] = None,
    batch: Annotated[str, typer.Option(help="'dynamic' or fixed; as in the file.")] = "dynamic",
    opset: Opset = None,
    trt_version: TrtVersion = None,
    outputs: Outputs = None,
    max_drop: MaxDrop = None,
    min_speedup: Annotated[float | None, typer.Option(help="Gate: against FP32.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Gate: median latency.")] = None,
    measure_seconds: Annotated[float, typer.Option(help="Timing budget; 0 skips.")] = 10.0,
    search_seconds: SearchSeconds = None,
    threads: Annotated[int | None, typer.Option(help="All cores by default.")] = None,
    output: Output = None,
    force: Force = False,
    keep_reference: KeepReference = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring MODEL.onnx, an FP32 file from elsewhere, to INT8 or INT4; no torch model is needed."""
    from vitdeploy.recipe import is_onnx_source, recipe_from_dict

    if not is_onnx_source(str(model)):
        raise UsageError(
            f"'{model}' is no .onnx file. `vitdeploy quantize` takes an FP32 ONNX file; for all "
            "other models use `vitdeploy export MODEL --int8`."
        )
    has_int4 = int4 or (int4_mixed and precision is None)
    chosen = one_precision(precision, int4=has_int4) if precision or has_int4 else "int8"
    if chosen.lower() not in ("int8", "w8a8", "int4", "w4a16", "w4a8"):
        raise UsageError(
            f"`vitdeploy quantize` brings weights to INT8 or INT4, not to '{chosen}'; allowed: "
            "int8, w4a16 (int4), w4a8."
        )
    prepared = {
        **_preprocess_from_file(preprocess),
        **({"mean": _triple("--mean", mean)} if mean else {}),
        **({"std": _triple("--std", std)} if std else {}),
        **({"interpolation": interpolation} if interpolation else {}),
        **({"crop_pct": crop_pct} if crop_pct is not None else {}),
        **({"crop_mode": crop_mode} if crop_mode else {}),
    }
    data: dict[str, Any] = {
        "model": {
            "source": str(model),
            "image_size": image_size,
            "outputs": outputs,
            "preprocess": prepared or None,
        },
        "precision": chosen,
        "int4": int4_section(
            chosen, int4_block, mixed=int4_mixed, max_size=int4_max_size, min_sqnr=int4_min_sqnr
        ),
        "targets": target or ["onnx"],
        "calibration": {"path": calib, "samples": calib_samples},
        "evaluation": {"path": eval_, "samples": eval_samples},
        "export": {
            "batch": int(batch) if batch.isdecimal() else batch,
            "opset": opset,
            "trt_version": trt_version_or_default(trt_version, chosen),
        },
        "gates": {
            "max_drop_points": max_drop,
            "min_speedup": min_speedup,
            "max_latency_ms": max_latency_ms,
        },
        "measure": {
            "seconds": measure_seconds,
            "search_seconds": search_seconds,
            "threads": threads,
        },
        "keep_reference": keep_reference,
        "seed": seed,
        "output": str(output) if output else None,
    }
    run_and_show(recipe_from_dict(data, "options"), force=force, json=json, quiet=quiet)


def _triple(option: str, text: str) -> list[float]:
    """Return the three numbers of `0.485,0.456,0.406`; one number stands for all channels."""
    try:
        values = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise UsageError(f"{option} is '{text}'; give three numbers, such as 0.5,0.5,0.5.")
    return values * (3 // len(values))


def _preprocess_from_file(path: Path | None) -> dict[str, Any]:
    """Return the preprocessing in a JSON file; what is wrong in it the recipe says."""
    import json as json_library

    if path is None:
        return {}
    try:
        content = json_library.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--preprocess '{path}' cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"--preprocess '{path}' holds no JSON object.")
    return content
