"""The time a search may take, shared by all that measure; what it did not allow is written down."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Budget:
    """Seconds that run from the moment it is made, and what had to be left out."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self.seconds = seconds
        self.image_seconds = 0.0
        """What one image through the FP32 graph takes, once that is known."""
        self.skipped: list[str] = []
        """One line for each thing left out."""

    @property
    def spent(self) -> float:
        """Seconds since the start, pauses apart."""
        return self._clock() - self._start

    @property
    def left(self) -> float:
        """Seconds that remain; 0 where none do."""
        return max(self.seconds - self.spent, 0.0)

    def affords(self, seconds: float, what: str) -> bool:
        """Return whether time is left and `seconds` fit; note `what` as left out otherwise."""
        if self.left > 0 and seconds <= self.left:
            return True
        self.skipped.append(what)
        return False

    def until(self, share: float) -> Callable[[], bool]:
        """Return what tells whether `share` of the time that is left now has been spent."""
        limit = self.spent + share * self.left
        return lambda: self.spent >= limit

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do work that is not part of the search."""
        before = self._clock()
        yield
        self._start += self._clock() - before
