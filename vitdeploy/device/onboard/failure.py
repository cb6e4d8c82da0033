"""How `build.py` ends and speaks: `Failure` with its exit code, and lines on stderr."""

from __future__ import annotations

import sys

USAGE = 2
BUILD = 5
MISSING = 6
MEASUREMENT = 7
MISMATCH = 10


class Failure(Exception):  # noqa: N818 - no error of the program: an answer to its user
    """One clear line for the user, and the exit code that goes with it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def say(message: str) -> None:
    """Write one line for people, on stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
