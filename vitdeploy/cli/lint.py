"""`vitdeploy lint`: whether TensorRT will take an ONNX file, and run it fast."""

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.options import Json
from vitdeploy.errors import ExportError, UsageError

if TYPE_CHECKING:
    from vitdeploy.lint import LintReport

_MOST_ROWS = 8
"""Findings of one rule that the table shows."""


def lint(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="Any ONNX file.")],
    target: Annotated[str, typer.Option(help="trt (engine) or trt-rtx.")] = "trt",
    trt_version: Annotated[
        str | None, typer.Option(help="8.6, 10.3, 10.15, 11.4, ...; 10.3 (JetPack 6) by default.")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(metavar="MAJOR.MINOR", help="Of the card; Jetson Orin: 8.7.")
    ] = None,
    profiled: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT", help="Dynamic input that gets a profile; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Check FILE.onnx against TensorRT's rules; errors leave with code 5."""
    from vitdeploy.console import print_json
    from vitdeploy.lint import Known, lint_file

    known = Known(
        profiled=frozenset(profiled or ()),
        compute_capability=_capability(compute_capability),
    )
    report = lint_file(file, _version(target, trt_version), known)
    if json:
        print_json(json_text.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_lint(report)
    if report.errors:
        broken = [r for r in report.results if any(f.severity == "error" for f in r.findings)]
        rules = ", ".join(f"{result.number} ({result.id})" for result in broken)
        raise ExportError(
            f"'{report.file}' breaks rules of {report.version} in {report.errors} place(s): rules "
            f"{rules}. The findings say how to mend each."
        )


def print_lint(report: "LintReport") -> None:
    """Print the findings as a table, and how many rules passed."""
    from vitdeploy.console import print_line, print_table

    rows: list[tuple[str, ...]] = []
    mends: dict[tuple[str, str], None] = {}
    for result in report.results:
        for finding in result.findings[:_MOST_ROWS]:
            number = str(result.number)
            rows.append((number, result.id, str(finding.severity), finding.node, finding.why))
            mends[number, finding.mend] = None
        hidden = len(result.findings) - _MOST_ROWS
        if hidden > 0:
            rows.append(("", "", "", f"and {hidden} more", "--json lists all"))
    if rows:
        columns = [">rule", "", "severity", "where", "why"]
        print_table(f"{report.file} for {report.version}", columns, rows)
    for number, mend in mends:
        print_line(f"rule {number}: {mend}")
    for note in report.notes:
        print_line(f"note: {note}")
    passed = sum(result.verdict == "pass" for result in report.results)
    idle = sum(result.verdict == "not_applicable" for result in report.results)
    print_line(
        f"{report.file} for {report.version}: {report.errors} errors, {report.warnings} warnings; "
        f"{passed} rules kept, {idle} do not apply"
    )


def _version(target: str, trt_version: str | None) -> str:
    """Return what `lint_file` takes as a version."""
    if target == "trt-rtx":
        if trt_version is not None:
            raise UsageError(
                "--trt-version is for --target trt; trt-rtx is checked as TensorRT for RTX 1.7. "
                "Leave one of the two away."
            )
        return target
    if target not in {"trt", "engine"}:
        raise UsageError(f"there are no lint rules for '{target}'. Allowed: trt (engine), trt-rtx.")
    return trt_version or "10.3"


def _capability(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise UsageError(
            f"--compute-capability {text}: two numbers are needed, such as 8.7 (Jetson Orin) or "
            "8.9 (Ada)."
        )
    return int(major), int(minor)
