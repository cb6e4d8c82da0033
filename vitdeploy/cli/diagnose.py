"""`vitdeploy diagnose`: where an INT8 artefact loses accuracy."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json, Quiet, require_positive
from vitdeploy.cli.outcome import require_writable, write_text


def diagnose(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder with an INT8 artefact.")],
    target: Annotated[
        str | None,
        typer.Option(help="Whose artefact: onnx, trt, trt-rtx; the bundle's first by default."),
    ] = None,
    calib: Annotated[
        str | None, typer.Option(help="Images to look at; the bundle's golden inputs by default.")
    ] = None,
    calib_samples: Annotated[int, typer.Option(help="How many of them.", min=1)] = 32,
    seconds: Annotated[
        float,
        typer.Option(
            help="Budget for measuring what each product in float gains.",
            callback=require_positive,
        ),
    ] = 60.0,
    html: Annotated[Path | None, typer.Option(help="Write tables and plots as HTML.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show which layers of an INT8 bundle lose the accuracy, and what to do about it."""
    from vitdeploy.console import ConsoleProgress, print_json
    from vitdeploy.diagnosis import diagnose as diagnose_bundle
    from vitdeploy.diagnosis.html import render
    from vitdeploy.display import print_diagnosis

    if html:
        require_writable(html)
    with ConsoleProgress(quiet=quiet or json) as progress:
        diagnosis = diagnose_bundle(
            bundle,
            target=target,
            calib=calib,
            samples=calib_samples,
            seconds=seconds,
            progress=progress,
        )
    if html:
        write_text(html, render(diagnosis))
    if json:
        print_json(diagnosis.model_dump_json(indent=2))
    elif not quiet:
        print_diagnosis(diagnosis)
