"""`vitdeploy export`: from a model to a checked bundle."""

from typing import Annotated, Any

import typer

from vitdeploy.cli.options import (
    Calib,
    CalibSamples,
    Checkpoint,
    Eval,
    EvalSamples,
    Force,
    ImageSize,
    Json,
    KeepReference,
    MaxDrop,
    Model,
    Opset,
    Output,
    Outputs,
    Quiet,
    RandomWeights,
    SearchSeconds,
    Seed,
    Targets,
    TrtVersion,
    one_precision,
)
from vitdeploy.cli.outcome import run_and_show


def export(
    model: Model,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    int8: Annotated[bool, typer.Option("--int8", help="INT8 weights and activations.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16.")] = False,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16, bf16, int8 (w8a8), or auto: the fastest that is faithful."),
    ] = None,
    prune_heads: Annotated[
        float | None, typer.Option(help="Share of all heads to remove for good, 0..1.")
    ] = None,
    prune_mlp: Annotated[
        float | None, typer.Option(help="Share of the MLPs' hidden channels to remove, 0..1.")
    ] = None,
    target: Targets = None,
    calib: Calib = None,
    calib_samples: CalibSamples = 256,
    eval_: Eval = None,
    eval_samples: EvalSamples = None,
    image_size: ImageSize = None,
    batch: Annotated[str, typer.Option(help="'dynamic', or a fixed number.")] = "dynamic",
    opset: Opset = None,
    trt_version: TrtVersion = "10.3",
    outputs: Outputs = None,
    max_drop: MaxDrop = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Gate: FP32 reference's median latency / artefact's.")
    ] = None,
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
    """Export MODEL to an artefact, compare it with FP32, time it, write a bundle."""
    from vitdeploy.recipe import recipe_from_dict

    chosen = one_precision(precision, int8=int8, fp16=fp16, bf16=bf16)
    data: dict[str, Any] = {
        "model": {
            "source": model,
            "checkpoint": str(checkpoint) if checkpoint else None,
            "random_weights": random_weights,
            "image_size": image_size,
            "outputs": outputs,
        },
        "precision": chosen,
        "prune": (
            {"heads": prune_heads or 0.0, "mlp": prune_mlp or 0.0}
            if prune_heads is not None or prune_mlp is not None
            else None
        ),
        "targets": target or ["onnx"],
        "calibration": {"path": calib, "samples": calib_samples},
        "evaluation": {"path": eval_, "samples": eval_samples},
        "export": {
            "batch": int(batch) if batch.isdecimal() else batch,
            "opset": opset,
            "trt_version": trt_version,
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
