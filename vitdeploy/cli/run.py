"""`vitdeploy run` and `vitdeploy plan`: recipes."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Force, Json, Output, Quiet
from vitdeploy.cli.outcome import run_and_show


def run(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    output: Output = None,
    junit: Annotated[Path | None, typer.Option(help="Write the gates as JUnit XML.")] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run RECIPE: what `export` does, from a file; for release pipelines."""
    from vitdeploy.recipe import recipe_from_yaml

    loaded = recipe_from_yaml(recipe)
    if output:
        loaded = loaded.model_copy(update={"output": str(output)})
    run_and_show(loaded, force=force, json=json, quiet=quiet, junit=junit)


def plan(recipe: Annotated[Path, typer.Argument(help="YAML recipe.")]) -> None:
    """Print RECIPE with every default filled in; nothing is done."""
    from vitdeploy.console import print_json
    from vitdeploy.recipe import recipe_from_yaml, yaml_from_recipe

    print_json(yaml_from_recipe(recipe_from_yaml(recipe)))
