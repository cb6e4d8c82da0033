"""The other end of `IsolatedStation`: `python -m vitdeploy.profiling.worker`, pickles on pipes."""

import os
import pickle
import sys

from vitdeploy.errors import VitdeployError
from vitdeploy.profiling.stations import LocalStation


def main() -> None:
    """Serve one station until the pipe closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    calls = sys.stdin.buffer
    source, setup = pickle.load(calls)  # noqa: S301 - from the process that started this one
    station = LocalStation(source, setup)
    while True:
        try:
            method, arguments = pickle.load(calls)  # noqa: S301
        except EOFError:
            station.close()
            return
        try:
            answer: object = getattr(station, method)(*arguments)
        except VitdeployError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
