"""`vitdeploy report show` and `diff`: reports that runs wrote."""

import math
from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json, Summary, require_positive
from vitdeploy.cli.outcome import (
    append_text,
    raise_regressions,
    report_path,
    require_writable,
    write_text,
)
from vitdeploy.errors import UsageError


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
    before: Annotated[Path, typer.Argument(help="Bundle folder or report.json: the baseline.")],
    after: Annotated[Path, typer.Argument(help="Bundle folder or report.json.")],
    max_regression: Annotated[
        str | None,
        typer.Option(metavar="PERCENT", help="Fail where time or size got worse by more: 5%."),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(help="With it: points of fidelity that may go.", callback=require_positive),
    ] = 0.5,
    summary: Summary = None,
    json: Json = False,
) -> None:
    """Print what changed from one report to another; with --max-regression, fail where it is worse.

    Exit code 10 where a figure got worse by more than allowed, or is not measured any more.
    """
    from vitdeploy.console import print_line
    from vitdeploy.display import print_diff
    from vitdeploy.report import Limits, brief, diff, is_same_machine, read_report, regressions

    limit = None if max_regression is None else percent_from_text(max_regression)
    if summary:
        require_writable(summary)
    reports = read_report(report_path(before)), read_report(report_path(after))
    changes = diff(*reports)
    found = () if limit is None else regressions(*reports, Limits(limit, max_drop))
    if summary:
        append_text(summary, brief.render_diff(reports, changes, found))
    print_diff(changes, as_json=json, regressions=found)
    if limit is not None and not is_same_machine(*reports):
        print_line("The reports are of different machines: times were judged by speed-up alone.")
    raise_regressions(found)


def percent_from_text(text: str) -> float:
    """Return 5.0 of `5%` or `5`.

    Raises:
        UsageError: it is no share from 0 up.
    """
    number = text.strip().removesuffix("%").strip()
    try:
        percent = float(number)
    except ValueError:
        percent = math.nan
    if not 0 <= percent < math.inf:
        raise UsageError(f"--max-regression '{text}': give per cent from 0 up, such as 5%.")
    return percent
