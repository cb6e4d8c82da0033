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
        self.build_seconds = 0.0
        """What it takes to make such a graph ready to run; a switched or probed one is larger."""
        self.batch_images = 1
        """How many images the calibration's batches have."""
        self.reserved = 0.0
        """Share of all seconds that is kept for a later part of the search."""
        self.skipped: list[str] = []
        """One line for each thing left out."""

    @property
    def spent(self) -> float:
        """Seconds since the start, pauses apart."""
        return self._clock() - self._start

    @property
    def left(self) -> float:
        """Seconds that remain beside what is reserved; 0 where none do."""
        return max((1.0 - self.reserved) * self.seconds - self.spent, 0.0)

    def affords(self, seconds: float, what: str) -> bool:
        """Return whether time is left and `seconds` fit; note `what` as left out otherwise.

        To be asked before each unit of work, with what it is expected to take: the search then
        ends late by the error of one estimate at most.
        """
        if self.left > 0 and seconds <= self.left:
            return True
        self.skipped.append(what)
        return False

    def until(self, share: float) -> Callable[[], bool]:
        """Return what tells whether `share` of the time that is left now has been spent.

        It is asked before each unit of work, and takes the next to be as long as the longest.
        """
        last = self.spent
        limit = last + share * self.left
        longest = 0.0

        def is_over() -> bool:
            nonlocal last, longest
            now = self.spent
            longest = max(longest, now - last)
            last = now
            return now + longest > limit or now >= limit

        return is_over

    def part(self, share: float) -> "Budget":
        """Return a budget of its own, from now on, with `share` of what is left here."""
        part = Budget(share * self.left, self._clock)
        part.image_seconds, part.build_seconds = self.image_seconds, self.build_seconds
        part.batch_images = self.batch_images
        part.skipped = self.skipped
        return part

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do work that is not part of the search."""
        before = self._clock()
        yield
        self._start += self._clock() - before
