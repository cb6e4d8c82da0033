"""Time budgets: reading `10m`, and ending work that has used its time up."""

import re
import time

from vitdeploy.errors import UsageError
from vitdeploy.progress import Progress

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class OutOfTimeError(Exception):
    """The budget is used up; what is under way is to be dropped."""


def seconds_from_duration(text: str) -> float:
    """Return the seconds that `90s`, `10m` or `1.5h` means.

    Raises:
        UsageError: it is no such duration, or not above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if seconds <= 0:
        raise UsageError(
            f"--budget is '{text}'; allowed: a number above 0 and a unit: 90s, 10m, 1.5h."
        )
    return seconds


class Deadline:
    """A `Progress` that raises `OutOfTimeError` once its time is up.

    Work tells it of stages and steps all the time, so that is where work can be ended. The name of
    what is tried is put before that of each stage; its notes are kept back, for there are many.
    """

    def __init__(self, told: Progress, seconds: float) -> None:
        self.told = told
        self.title = ""
        self.is_enforced = False
        """Set once there is a first result, so that a budget too short is not for nothing."""
        self._start = time.monotonic()
        self._seconds = seconds

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def is_over(self) -> bool:
        """Whether the time is up, and something was found in it."""
        return self.is_enforced and self.spent > self._seconds

    def stage(self, name: str) -> None:
        """Pass the stage on, or end the work."""
        self._require_time()
        self.told.stage(f"{self.title}{name}")

    def step(self, done: int, total: int) -> None:
        """Pass the step on, or end the work."""
        self._require_time()
        self.told.step(done, total)

    def detail(self, message: str) -> None:
        """Pass the figures on."""
        self.told.detail(message)

    def note(self, message: str) -> None:
        """Keep the note back; what matters of it is in the candidate's row."""

    def _require_time(self) -> None:
        if self.is_over:
            raise OutOfTimeError
