"""What people see: progress bars, tables and messages, all on stderr; JSON on stdout.

The only module that prints.
"""

import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


def people() -> Console:
    """Return the console for people: stderr, plain where that is no terminal."""
    # A pipe has no width; tables take what they need of this, so that no figure is cut there.
    width = None if sys.stderr.isatty() else 200
    return Console(stderr=True, highlight=False, width=width)


def print_json(text: str) -> None:
    """Print machine-readable text on stdout."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def print_error(message: str) -> None:
    """Print one error for people."""
    people().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def print_line(message: str) -> None:
    """Print one line for people."""
    people().print(Text(message), soft_wrap=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table for people; columns whose name starts with `>` are right-aligned."""
    # `Text` everywhere: names and messages may hold brackets, which rich would take for markup.
    heading = Text(title) if title else None
    table = Table(title=heading, title_justify="left", title_style="bold")
    for column in columns:
        right = column.startswith(">")
        # On a narrow terminal a cell is broken into lines, never cut short.
        justify: JustifyMethod = "right" if right else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    people().print(table)


class ConsoleProgress:
    """A `progress.Progress` on stderr: a bar on a terminal, one line a stage elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = people()
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> "ConsoleProgress":
        if not self._quiet and self._console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description:<20}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def stage(self, name: str) -> None:
        """Show that a stage begins."""
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=None, detail="")
        elif not self._quiet:
            self._console.print(Text(f"{name} ..."))

    def step(self, done: int, total: int) -> None:
        """Move the bar of the current stage."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def detail(self, message: str) -> None:
        """Show figures beside the bar; a pipe shows none, as they are replaced all the time."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, detail=message)

    def note(self, message: str) -> None:
        """Show one line that matters now."""
        if not self._quiet:
            self._console.print(Text.assemble(("note: ", "yellow"), message), soft_wrap=True)
