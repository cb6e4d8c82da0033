"""What `vitdeploy profile` is asked: frozen, checked whole."""

import math
from dataclasses import dataclass

from vitdeploy.errors import UsageError

DEVICES = ("cpu", "cuda", "tensorrt", "gpu", "npu")
"""`cuda` and `tensorrt` are ONNX Runtime's providers, `gpu` and `npu` OpenVINO's devices."""


@dataclass(frozen=True)
class ProfileOptions:
    """How artefacts are measured."""

    batches: tuple[int, ...] = (1,)
    """Images per run; artefacts of a fixed batch keep theirs. Ratios are at the first."""
    streams: tuple[int, ...] = (1,)
    """Runs in flight at once, for throughput."""
    seconds: float = 10.0
    """Of timing, for all artefacts together."""
    threads: int | None = None
    """As many as each engine likes where None; else pinned to as many CPUs."""
    device: str = "cpu"
    is_isolated: bool = False
    """One process for each artefact, instead of one for all."""
    with_roofline: bool = False
    random_weights: bool = False
    """Of model names: seeded random weights."""
    image_size: int | None = None
    """Of model names: pixels of the square input."""


def require_valid(options: ProfileOptions) -> None:
    """Return where the options can be measured.

    Raises:
        UsageError: a number is out of range, listed twice, or the device is unknown.
    """
    for name, numbers in (("batch", options.batches), ("streams", options.streams)):
        if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
            shown = ", ".join(map(str, numbers))
            raise UsageError(
                f"profile cannot measure --{name} {shown or 'nothing'}; give whole numbers of at "
                "least 1, each once, such as 1,8."
            )
    has_threads = options.threads is None or options.threads >= 1
    if not 0 <= options.seconds < math.inf or not has_threads:
        raise UsageError(
            f"profile needs threads (seen {options.threads}) of at least 1, and finite seconds "
            f"(seen {options.seconds}) of at least 0."
        )
    if options.device not in DEVICES:
        raise UsageError(
            f"profile has no device '{options.device}'; use {', '.join(DEVICES)}, or "
            "ssh://USER@HOST."
        )
