"""`vitdeploy profile`: latencies of artefacts, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json, require_positive
from vitdeploy.cli.outcome import print_json_or


def profile(
    artifacts: Annotated[list[Path], typer.Argument(help="Bundles or ONNX files.")],
    batch: Annotated[int, typer.Option(help="Images per run.", min=1)] = 1,
    seconds: Annotated[
        float, typer.Option(help="Timing budget.", callback=require_positive)
    ] = 10.0,
    threads: Annotated[int | None, typer.Option(help="All cores by default.", min=1)] = None,
    json: Json = False,
) -> None:
    """Time bundles and ONNX files in turns in one process."""
    from vitdeploy.console import ConsoleProgress
    from vitdeploy.display import print_profile
    from vitdeploy.profiling import profile as profile_artifacts

    with ConsoleProgress(quiet=json) as progress:
        report = profile_artifacts(
            artifacts, batch=batch, seconds=seconds, threads=threads, progress=progress
        )
    print_json_or(report, json, print_profile)
