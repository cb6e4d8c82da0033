"""`vitdeploy profile --device ssh://...`: what was measured on a device, shown here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.cli.outcome import print_json_or, raise_failed_gates, write_text

if TYPE_CHECKING:
    from vitdeploy.profiling import ProfileOptions
    from vitdeploy.remote import RemoteOptions
    from vitdeploy.report import Report


def profile_there(
    artifacts: Sequence[str],
    device: str,
    options: "ProfileOptions",
    wishes: "RemoteOptions",
    *,
    html: Path | None,
    json: bool,
) -> None:
    """Profile bundles on a device, show the report, fail where a golden output is missed."""
    from vitdeploy.console import ConsoleProgress
    from vitdeploy.device import device_section
    from vitdeploy.remote import address_from_url, profile_over_ssh
    from vitdeploy.report import WRITERS

    address = address_from_url(device)
    with ConsoleProgress(quiet=json) as progress:
        report = profile_over_ssh(artifacts, address, options, wishes, progress)
    if html:
        tables = device_section(report.device) if report.device else ()
        write_text(html, WRITERS["html"].render(report, tables))
    print_json_or(report, json, _print)
    raise_failed_gates(report)


def _print(report: "Report") -> None:
    from vitdeploy.cli.build import print_device_report
    from vitdeploy.console import print_line, print_table
    from vitdeploy.display import print_gates
    from vitdeploy.display_profile import print_profile

    if report.profile:
        print_profile(report)
    else:
        for note in report.notes:
            print_line(f"note: {note}")
    if report.device:
        print_device_report(report.device)
    print_gates(report)
    print_table("The device", ["", ""], list(report.environment.items()))
