"""`vitdeploy export`: from a model to a checked bundle."""

from typing import Annotated, Any

import typer

from vitdeploy.cli.options import (
    BakePreprocessing,
    Calib,
    CalibSamples,
    Checkpoint,
    Eval,
    EvalSamples,
    Force,
    ImageSize,
    Int4,
    Int4Block,
    Int4MaxSize,
    Int4MinSqnr,
    Int4Mixed,
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
    Tiles,
    TrtVersion,
    Video,
    int4_section,
    one_precision,
    trt_version_or_default,
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
        typer.Option(
            help="fp32, fp16, bf16, int8 (w8a8), w4a16 (int4), w4a8, or auto: the fastest that is "
            "faithful."
        ),
    ] = None,
    int4: Int4 = False,
    int4_mixed: Int4Mixed = False,
    int4_max_size: Int4MaxSize = None,
    int4_min_sqnr: Int4MinSqnr = None,
    int4_block: Int4Block = 64,
    prune_heads: Annotated[
        float | None, typer.Option(help="Share of all heads to remove for good, 0..1.")
    ] = None,
    prune_mlp: Annotated[
        float | None, typer.Option(help="Share of the MLPs' hidden channels to remove, 0..1.")
    ] = None,
    merge_tokens: Annotated[
        float | None,
        typer.Option(help="Share of a plain ViT's patch tokens to merge, 0..0.5; not exact."),
    ] = None,
    target: Targets = None,
    calib: Calib = None,
    calib_samples: CalibSamples = 256,
    eval_: Eval = None,
    eval_samples: EvalSamples = None,
    image_size: ImageSize = None,
    batch: Annotated[str, typer.Option(help="'dynamic', or a fixed number.")] = "dynamic",
    opset: Opset = None,
    trt_version: TrtVersion = None,
    outputs: Outputs = None,
    video: Video = False,
    tiles: Tiles = None,
    bake_preprocessing: BakePreprocessing = False,
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

    has_int4 = int4 or (int4_mixed and precision is None and not (int8 or fp16 or bf16))
    chosen = one_precision(precision, int8=int8, int4=has_int4, fp16=fp16, bf16=bf16)
    data: dict[str, Any] = {
        "model": {
            "source": model,
            "checkpoint": str(checkpoint) if checkpoint else None,
            "random_weights": random_weights,
            "image_size": image_size,
            "outputs": outputs,
            "video": video,
        },
        "precision": chosen,
        "prune": (
            {"heads": prune_heads or 0.0, "mlp": prune_mlp or 0.0}
            if prune_heads is not None or prune_mlp is not None
            else None
        ),
        "targets": target or ["onnx"],
        "int4": int4_section(
            chosen, int4_block, mixed=int4_mixed, max_size=int4_max_size, min_sqnr=int4_min_sqnr
        ),
        "merge_tokens": {"share": merge_tokens} if merge_tokens is not None else None,
        "calibration": {"path": calib, "samples": calib_samples},
        "evaluation": {"path": eval_, "samples": eval_samples},
        "export": {
            "batch": int(batch) if batch.isdecimal() else batch,
            "opset": opset,
            "tiles": tiles,
            "bake_preprocessing": bake_preprocessing,
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
