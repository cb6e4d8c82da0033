"""Energy of a candidate and of the FP32 reference: a second of load each, in turns."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from vitdeploy.energy import EnergySource, find_energy_source
from vitdeploy.errors import DataError, UnsupportedError
from vitdeploy.findings import Compressed
from vitdeploy.job import ExportedPart, Job
from vitdeploy.runner import Feeds, Runner
from vitdeploy.stages import timing_feeds
from vitdeploy.targets import load_target
from vitdeploy.targets.onnx import OrtRunner

_LOAD_SECONDS = 1.0
"""Of each in a round: power counters tell a mean over some tens of milliseconds."""
_ROUNDS = 3


@dataclass(frozen=True)
class EnergyUse:
    """Millijoules an image, all parts together."""

    own_mj: float
    reference_mj: float


@dataclass
class _Load:
    """One runner under load, and what it used."""

    run: Callable[[Feeds], object]
    feeds: Feeds
    batch: int
    joules: float = 0.0
    images: int = field(default=0)

    def __call__(self) -> None:
        end = time.perf_counter() + _LOAD_SECONDS
        while time.perf_counter() < end:
            self.run(self.feeds)
            self.images += self.batch

    @property
    def millijoules(self) -> float:
        return 1000.0 * self.joules / self.images


def require_energy_source() -> EnergySource:
    """Return what tells energy on this machine.

    Raises:
        UnsupportedError: nothing does.
    """
    source, reason = find_energy_source()
    if source is None:
        raise UnsupportedError(
            f"--objective energy: {reason}. Use --objective latency, or run where energy is told."
        )
    return source


def energy_use(
    job: Job, compressed: Sequence[Compressed], whole: Sequence[ExportedPart]
) -> EnergyUse:
    """Return the energy of a candidate's artefacts and of the FP32 graphs of the model as given.

    Raises:
        DataError: the platform's counters fail meanwhile.
    """
    own_mj = reference_mj = 0.0
    threads = job.work.recipe.measure.threads
    with ExitStack() as stack:
        source = stack.enter_context(require_energy_source())
        for item, part in zip(compressed, whole, strict=True):
            artifact = item.artifact
            feeds, batch = timing_feeds(job.work.recipe, job.images, part.part)
            with (
                load_target(artifact.target).open(artifact, threads) as runner,
                OrtRunner(part.path, threads) as reference,
            ):
                own, other = _measured(source, (runner, reference), feeds, batch)
            own_mj += own
            reference_mj += other
    return EnergyUse(own_mj, reference_mj)


def _measured(
    source: EnergySource, runners: tuple[Runner, Runner], feeds: Feeds, batch: int
) -> tuple[float, float]:
    loads = [_Load(runner, feeds, batch) for runner in runners]
    for load in loads:
        load.run(feeds)  # the first run allocates
    try:
        for _ in range(_ROUNDS):
            for load in loads:
                load.joules += source.joules(load)
    except (OSError, ValueError) as error:
        raise DataError(f"{source.name} failed while energy was measured: {error}.") from error
    return loads[0].millijoules, loads[1].millijoules
