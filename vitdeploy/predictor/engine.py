"""An engine that several threads share, and which is closed once; what is closed by a `with`."""

import threading
from types import TracebackType
from typing import TypeVar

from vitdeploy.errors import UsageError
from vitdeploy.runner import Feeds, Outputs, Runner

_Own = TypeVar("_Own", bound="Closing")


class Closing:
    """A context manager that ends with `close`."""

    def close(self) -> None:
        """Free what is held; later calls are errors."""
        raise NotImplementedError

    def __enter__(self: _Own) -> _Own:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class SharedEngine:
    """A runner that many threads may call: one run at a time, and none after `close`.

    One at a time, for a run takes all of the engine's threads anyway, and OpenVINO's and TensorRT's
    engines have one set of buffers.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner: Runner | None = runner
        self._lock = threading.Lock()

    def __call__(self, feeds: Feeds) -> Outputs:
        """Return the outputs by name.

        Raises:
            UsageError: it was closed.
        """
        with self._lock:
            if self._runner is None:
                raise UsageError("this predictor is closed; open the bundle again.")
            return self._runner(feeds)

    def close(self) -> None:
        """Free the engine once the run under way is done; does nothing the second time."""
        with self._lock:
            runner, self._runner = self._runner, None
        if runner is not None:
            runner.__exit__(None, None, None)
