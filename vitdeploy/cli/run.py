"""`vitdeploy run`: recipes."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Force, Json, Output, Quiet, Summary
from vitdeploy.cli.outcome import run_and_show


def run(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    output: Output = None,
    junit: Annotated[Path | None, typer.Option(help="Write gates and parity as JUnit XML.")] = None,
    summary: Summary = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run RECIPE: what `export` does, from a file; for release pipelines."""
    from vitdeploy.recipe import recipe_from_yaml

    loaded = recipe_from_yaml(recipe)
    if output:
        loaded = loaded.model_copy(update={"output": str(output)})
    run_and_show(loaded, force=force, json=json, quiet=quiet, junit=junit, summary=summary)
