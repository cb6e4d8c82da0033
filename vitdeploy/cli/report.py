"""`vitdeploy report show` and `diff`: reports that runs wrote."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json
from vitdeploy.cli.outcome import print_json_or, report_path


def report_show(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder or report.json.")],
    json: Json = False,
) -> None:
    """Print the report of a bundle."""
    from vitdeploy.display import print_report
    from vitdeploy.report import read_report

    print_json_or(read_report(report_path(bundle)), json, lambda report: print_report(report, None))


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
