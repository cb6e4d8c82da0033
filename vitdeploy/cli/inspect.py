"""`vitdeploy inspect` and `models`: what there is, with no work done."""

import dataclasses
import json as json_library
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.options import Checkpoint, ImageSize, Json, Model, Outputs, RandomWeights
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from vitdeploy.models.scaling import Scaling

LARGEST_PIXELS = 8192


def inspect(
    model: Model,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    image_size: ImageSize = None,
    outputs: Outputs = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Image sizes to compare, as 224,448,896; needs no weights."),
    ] = None,
    json: Json = False,
) -> None:
    """Show parameters, GMACs, tokens, preprocessing, attention sites and parts of MODEL."""
    if sizes is not None and image_size is not None:
        raise UsageError("--sizes and --image-size exclude each other; give one.")
    if sizes is not None:
        _compare_sizes(model, sizes, outputs, json=json)
        return
    from vitdeploy.display import print_description
    from vitdeploy.models import describe, load
    from vitdeploy.pipeline import load_options
    from vitdeploy.recipe import recipe_from_dict

    options = {
        "source": model,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "random_weights": random_weights,
        "image_size": image_size,
        "outputs": outputs,
    }
    recipe = recipe_from_dict({"model": options}, "options")
    print_description(describe(load(load_options(recipe))), as_json=json)


def _compare_sizes(model: str, sizes: str, outputs: str | None, *, json: bool) -> None:
    """Print what MODEL costs at several image sizes."""
    from vitdeploy.models.scaling import scaling_of
    from vitdeploy.models.spec import LoadOptions
    from vitdeploy.recipe.names import canonical_outputs

    pixels = [size.strip() for size in sizes.split(",")]
    if not all(size.isdecimal() and 8 <= int(size) <= LARGEST_PIXELS for size in pixels):
        raise UsageError(
            f"--sizes {sizes}: numbers of pixels from 8 to {LARGEST_PIXELS} with commas between "
            "them are expected, for instance 224,448,896."
        )
    try:
        chosen = None if outputs is None else canonical_outputs(outputs)
    except ValueError as error:
        raise UsageError(f"--outputs: {error}") from error
    scaling = scaling_of(LoadOptions(model, outputs=chosen), [int(size) for size in pixels])
    _print_scaling(model, scaling, as_json=json)


def _print_scaling(name: str, scaling: "Scaling", *, as_json: bool) -> None:
    """Print what a model costs by image size, and from where attention is most of it."""
    from vitdeploy.console import print_json, print_line, print_table

    if as_json:
        print_json(json_library.dumps({"name": name, **dataclasses.asdict(scaling)}, indent=2))
        return
    rows = [
        (
            f"{row.image_size}",
            str(row.tokens or "-"),
            f"{row.gmacs:.2f}",
            f"{row.attention_percent:.1f}",
            f"{row.weight_bytes / 1e6:.1f}",
            f"{row.activation_bytes / 1e6:.1f}",
        )
        for row in scaling.rows
    ]
    columns = [">pixels", ">tokens", ">GMACs", ">attention, %", ">weights, MB"]
    print_table(f"{name}, one image in FP32", [*columns, ">activations, MB"], rows)
    size = scaling.attention_dominates_at
    print_line(
        "Attention is not half of the work at any size up to 8192 pixels."
        if size is None
        else f"Attention is more than half of the work from about {size} pixels."
    )


def models(json: Json = False) -> None:
    """List the aliases and families."""
    from vitdeploy.display import print_aliases
    from vitdeploy.models import aliases

    print_aliases(aliases(), as_json=json)
