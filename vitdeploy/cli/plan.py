"""`vitdeploy plan`: a recipe in full, or what a model will need."""

import dataclasses
import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.options import ImageSize, Json, require_positive

if TYPE_CHECKING:
    from vitdeploy.planning import Estimate


def plan(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|MODEL", help="YAML recipe, or a model as for export.")
    ],
    image_size: ImageSize = None,
    images: Annotated[
        int, typer.Option(help="Pictures that calibration and evaluation run, of a MODEL.", min=1)
    ] = 512,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GB of the machine meant, of a MODEL; what is free here by default.",
            callback=require_positive,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Print RECIPE with every default filled in, or what an export of MODEL needs; do nothing.

    A MODEL that needs more memory than there is leaves with exit code 6.
    """
    if Path(what).suffix.lower() in (".yaml", ".yml"):
        from vitdeploy.console import print_json
        from vitdeploy.recipe import recipe_from_yaml, yaml_from_recipe

        print_json(yaml_from_recipe(recipe_from_yaml(Path(what))))
        return
    from vitdeploy.models.spec import LoadOptions
    from vitdeploy.planning import estimate, require_memory

    found = estimate(LoadOptions(what, image_size=image_size), images, memory)
    _print_estimate(found, as_json=json)
    require_memory(found)


def _print_estimate(found: "Estimate", *, as_json: bool) -> None:
    """Print what an export will need."""
    from vitdeploy.console import print_json, print_table

    if as_json:
        data = {**dataclasses.asdict(found), "fits": found.fits}
        print_json(json_library.dumps(data, indent=2))
        return
    rows = [
        ("input", f"{found.image_size} x {found.image_size} pixels"),
        ("parameters", f"{found.parameters:,}"),
        ("GMACs per image", f"{found.gmacs:.2f}, {found.attention_percent:.1f} % in attention"),
        ("tokens per softmax row", str(found.tokens or "-")),
        ("largest FP32 weight", f"{found.largest_tensor_bytes / 1e6:.1f} MB"),
        ("memory to export", f"{found.export_bytes / 1e9:.1f} GB"),
        ("memory of the machine", f"{found.memory_bytes / 1e9:.1f} GB"),
        ("one image in FP32", f"{_seconds(found.image_seconds)} at the least"),
        (f"{found.images} images, twice", f"{_seconds(found.run_seconds)} at the least"),
    ]
    print_table(f"{found.model}, planned from its shapes", ["", ""], rows)
    files = [
        (
            need.precision,
            f"{need.weight_bytes / 1e9:.2f}",
            "beside the graph" if need.is_external else "in the graph",
            str(need.shards),
        )
        for need in found.files
    ]
    print_table("Weights", ["precision", ">GB", "lie", ">files of 2 GiB"], files)


def _seconds(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
