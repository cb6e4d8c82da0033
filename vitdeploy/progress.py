"""How long work tells the outside how far it is, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of a run; `console` draws it, tests record it."""

    def stage(self, name: str) -> None:
        """Begin the stage called `name`."""
        ...

    def step(self, done: int, total: int) -> None:
        """Report `done` of `total` units of the current stage."""
        ...

    def detail(self, message: str) -> None:
        """Say beside the bar how the current stage does: figures that the next ones replace."""
        ...

    def note(self, message: str) -> None:
        """Tell the user one line that matters now (a warning, a choice made)."""
        ...


class SilentProgress:
    """A `Progress` that shows nothing; the default of the Python API."""

    def stage(self, name: str) -> None:
        """Ignore the stage."""

    def step(self, done: int, total: int) -> None:
        """Ignore the step."""

    def detail(self, message: str) -> None:
        """Ignore the figures."""

    def note(self, message: str) -> None:
        """Ignore the note."""
