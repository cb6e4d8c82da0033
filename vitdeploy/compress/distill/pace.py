"""`Pace`: losses, accuracy and speed of a training, for progress bar and metrics."""

import time

_SMOOTHING = 0.95
"""What a step leaves of the running means."""


class Pace:
    """Running means since an epoch began.

    Args:
        batch_size: pictures of one optimiser step.
        step: optimiser steps done before.
        total: optimiser steps of the whole training.
    """

    def __init__(self, batch_size: int, step: int, total: int) -> None:
        self.batch_size = batch_size
        self.step = step
        self.total = total
        self.last: dict[str, float] = {}
        self._means: dict[str, float] = {}
        self._begun = time.perf_counter()
        self._steps = 0

    def add(self, parts: dict[str, float], accuracy: float | None) -> None:
        """Take in the losses and the accuracy (0..1) of a micro-batch."""
        self.last = parts
        values = parts if accuracy is None else {**parts, "train_top1": 100 * accuracy}
        for name, value in values.items():
            before = self._means.get(name, value)
            self._means[name] = _SMOOTHING * before + (1 - _SMOOTHING) * value

    def end_step(self) -> None:
        """Count an optimiser step."""
        self.step += 1
        self._steps += 1

    @property
    def images_per_second(self) -> float:
        """Pictures a second since the epoch began."""
        return self._steps * self.batch_size / max(time.perf_counter() - self._begun, 1e-9)

    @property
    def seconds_left(self) -> float:
        """What the rest of the training takes at this speed."""
        return (self.total - self.step) * self.batch_size / max(self.images_per_second, 1e-9)

    def row(self) -> dict[str, float]:
        """Return the means and the speed, for the metrics."""
        means = {name: round(value, 6) for name, value in self._means.items()}
        return {**means, "images_per_second": round(self.images_per_second, 1)}

    def describe(self) -> str:
        """Return one line: loss, accuracy, images/s and time left."""
        text = f"loss {self._means.get('loss', 0.0):.3f}"
        if "train_top1" in self._means:
            text += f", accuracy {self._means['train_top1']:.1f} %"
        minutes, seconds = divmod(round(self.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f"{text}, {self.images_per_second:.0f} images/s, {left} left"
