"""What every command does with its result: show it, write it, fail on a missed gate."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import GateError, UsageError

if TYPE_CHECKING:
    from vitdeploy.recipe import Recipe
    from vitdeploy.report import Regression, Report


def run_and_show(
    recipe: "Recipe",
    *,
    force: bool,
    json: bool,
    quiet: bool,
    junit: Path | None = None,
    summary: Path | None = None,
) -> None:
    """Run a recipe, show its report, write what a pipeline asks for, fail on a missed gate."""
    from vitdeploy.console import ConsoleProgress, print_json
    from vitdeploy.display import print_report
    from vitdeploy.pipeline import output_folder
    from vitdeploy.pipeline import run as run_recipe
    from vitdeploy.report import WRITERS

    for path in filter(None, (junit, summary)):
        require_writable(path)  # before the work, not after it
    with ConsoleProgress(quiet=quiet) as progress:
        report = run_recipe(recipe, force=force, progress=progress)
    if junit:
        write_text(junit, WRITERS["junit"].render(report))
    if summary:
        append_text(summary, WRITERS["brief"].render(report))
    if json:
        print_json(WRITERS["json"].render(report))
    elif not quiet:
        print_report(report, str(output_folder(recipe)))
    raise_failed_gates(report)


def print_json_or(report: "Report", json: bool, render: Any) -> None:
    """Print the report as JSON, or as `render` draws it."""
    from vitdeploy.console import print_json
    from vitdeploy.report import WRITERS

    if json:
        print_json(WRITERS["json"].render(report))
    else:
        render(report)


def raise_failed_gates(report: "Report") -> None:
    """Raise GateError where a gate of the report failed."""
    failed = [gate for gate in report.gates if not gate.passed]
    if failed:
        shown = "; ".join(
            f"{gate.name}: {'not measured' if gate.value is None else f'{gate.value:.4g}'}, "
            f"limit {gate.limit:g}"
            for gate in failed
        )
        raise GateError(f"{len(failed)} gate(s) failed: {shown}")


def raise_regressions(found: Sequence["Regression"]) -> None:
    """Raise GateError where a figure got worse by more than allowed."""
    if found:
        shown = "; ".join(f"{one.change.key}: {one.reason}" for one in found)
        raise GateError(f"{len(found)} figure(s) got worse: {shown}")


def report_path(place: Path) -> Path:
    """Return the report in a bundle folder, or `place` itself."""
    return place / "report.json" if place.is_dir() else place


def require_writable(path: Path) -> None:
    """Raise UsageError where no file can be written at `path`."""
    above = path.absolute().parent
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(
            f"cannot write '{path}': it is a folder, or '{above}' is not a folder you may write "
            "to. Give the path of a file."
        )


def write_text(path: Path, text: str, mode: str = "w") -> None:
    """Write a file the user named; raises UsageError where that fails."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {error.strerror}.") from error


def append_text(path: Path, text: str) -> None:
    """Write at the end of a file the user named; raises UsageError where that fails."""
    write_text(path, text, "a")
