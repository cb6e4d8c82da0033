"""`vitdeploy prune`: remove heads, MLP channels and blocks of a model; write a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import (
    Calib,
    CalibSamples,
    Checkpoint,
    Force,
    ImageSize,
    Json,
    Model,
    Outputs,
    Quiet,
    RandomWeights,
    Seed,
)


def prune(
    model: Model,
    prune_heads: Annotated[float, typer.Option(help="Share of all heads that go, 0..1.")] = 0.0,
    prune_mlp: Annotated[float, typer.Option(help="Share of all MLP channels, 0..1.")] = 0.0,
    prune_blocks: Annotated[float, typer.Option(help="Share of all blocks, 0..1.")] = 0.0,
    to_gmacs: Annotated[
        float | None, typer.Option(help="Prune until an image takes this many 10^9 MACs.")
    ] = None,
    to_million_parameters: Annotated[
        float | None, typer.Option(help="Prune until this many million parameters are left.")
    ] = None,
    to_latency_ms: Annotated[
        float | None,
        typer.Option(help="Prune until the median latency, measured in FP32 on --target, is this."),
    ] = None,
    target: Annotated[
        str, typer.Option(help="Of --to-latency-ms: onnx, openvino (ov), trt, trt-rtx.")
    ] = "onnx",
    criterion: Annotated[
        str, typer.Option(help="taylor, gate; controls: magnitude, random.")
    ] = "taylor",
    ranking: Annotated[str, typer.Option(help="global, or within each layer.")] = "global",
    width_multiple: Annotated[
        int | None, typer.Option(help="MLP channels that go at a time; 64 where it fits.")
    ] = None,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    calib: Calib = None,
    calib_samples: CalibSamples = 256,
    image_size: ImageSize = None,
    outputs: Outputs = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Model folder; ./<model>-pruned.")
    ] = None,
    force: Force = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove the least important heads and MLP channels of MODEL; write a model folder.

    The folder is a MODEL itself: `vitdeploy export <folder> --int8`.
    """
    import json as json_library

    from vitdeploy.console import ConsoleProgress, print_json, print_line
    from vitdeploy.pruning import prune_from_recipe
    from vitdeploy.recipe import recipe_from_dict

    recipe = recipe_from_dict(
        {
            "model": {
                "source": model,
                "checkpoint": str(checkpoint) if checkpoint else None,
                "random_weights": random_weights,
                "image_size": image_size,
                "outputs": outputs,
            },
            "prune": {
                "heads": prune_heads,
                "mlp": prune_mlp,
                "blocks": prune_blocks,
                "to_gmacs": to_gmacs,
                "to_million_parameters": to_million_parameters,
                "to_latency_ms": to_latency_ms,
                "criterion": criterion,
                "ranking": ranking,
                "width_multiple": width_multiple,
                "path": calib,
                "samples": calib_samples,
            },
            "targets": [target],
            "seed": seed,
        },
        "options",
    )
    folder = output or Path(f"{Path(model).name.rpartition(':')[2]}-pruned")
    with ConsoleProgress(quiet=quiet or json) as progress:
        report = prune_from_recipe(recipe, folder, force=force, progress=progress)
    if json:
        print_json(json_library.dumps(report.to_dict(), indent=2))
    elif not quiet:
        print_line(f"model folder: {folder}   next: vitdeploy export {folder}")
