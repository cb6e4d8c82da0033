"""`vitdeploy report show` and `diff`: reports that runs wrote."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json
from vitdeploy.cli.outcome import report_path, require_writable, write_text


def report_show(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder or report.json.")],
    html: Annotated[
        Path | None, typer.Option(help="Write it as HTML, what the device found included.")
    ] = None,
    json: Json = False,
) -> None:
    """Print the report of a bundle, and what a build on the device found."""
    from vitdeploy.cli.build import print_device_report
    from vitdeploy.console import print_json
    from vitdeploy.device import device_section, read_device_report
    from vitdeploy.display import print_report
    from vitdeploy.report import WRITERS, read_report

    if html:
        require_writable(html)
    report = read_report(report_path(bundle))
    device = read_device_report(bundle) if bundle.is_dir() else None
    if html:
        write_text(html, WRITERS["html"].render(report, device_section(device) if device else ()))
    if json:
        print_json(WRITERS["json"].render(report.model_copy(update={"device": device})))
        return
    print_report(report, None)
    if device:
        print_device_report(device)


def report_diff(
    before: Annotated[Path, typer.Argument(help="Bundle folder or report.json.")],
    after: Annotated[Path, typer.Argument(help="Bundle folder or report.json.")],
    json: Json = False,
) -> None:
    """Print what changed from one report to another."""
    from vitdeploy.display import print_diff
    from vitdeploy.report import diff, read_report

    print_diff(
        diff(read_report(report_path(before)), read_report(report_path(after))), as_json=json
    )
