"""The one hierarchy of project errors; each class owns its exit code.

A message says what failed, the value seen, what is allowed and what to do next.
Anything that is not a `VitdeployError` is a bug and leaves with exit code 1.
"""

import difflib
from collections.abc import Iterable


class VitdeployError(Exception):
    """Base of all errors a user can cause or meet; never raised itself."""

    exit_code = 1


class UsageError(VitdeployError):
    """The command line or the recipe asks for something that is not allowed."""

    exit_code = 2


class ModelError(VitdeployError):
    """The model or its checkpoint cannot be found, read or trusted."""

    exit_code = 3


class CompressionError(VitdeployError):
    """A prune, distil or quantise step cannot do what was asked."""

    exit_code = 4


class ExportError(VitdeployError):
    """The model does not export, or an artefact does not match its reference."""

    exit_code = 5


class UnsupportedError(VitdeployError):
    """Something is missing on this machine or not available in this version."""

    exit_code = 6


class DataError(VitdeployError):
    """Images, files or a measurement failed: unreadable, disk full, wrong hash."""

    exit_code = 7


class GateError(VitdeployError):
    """A gate failed; the artefacts and the report were written all the same."""

    exit_code = 10


EXIT_INTERRUPTED = 130


class StoppedError(VitdeployError):
    """Somebody stopped work that keeps what it has; the message says what that is."""

    exit_code = EXIT_INTERRUPTED


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
