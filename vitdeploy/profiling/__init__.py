"""`profile`: artefacts measured in turns, in one process or one each.

`profile_artifacts` is the seam: paths and names with `ProfileOptions` in, a `ProfileResult` out,
which is data; `report_of_profile` makes the report of it that every other command reads.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from vitdeploy.environment import describe_environment
from vitdeploy.errors import UnsupportedError, UsageError
from vitdeploy.profiling.energy_use import energy_of
from vitdeploy.profiling.engines import Setup, require_device
from vitdeploy.profiling.limits import roofline_of
from vitdeploy.profiling.noise import MachineWatch
from vitdeploy.profiling.options import DEVICES, ProfileOptions, require_valid
from vitdeploy.profiling.pinning import pinned
from vitdeploy.profiling.results import OpenPart, Rows, Timed, report_of_profile, result_of
from vitdeploy.profiling.rounds import Cell, run_rounds
from vitdeploy.profiling.stations import IsolatedStation, LocalStation, Station
from vitdeploy.profiling.statistics import round_medians, spread_percent
from vitdeploy.profiling.subjects import Source, sources_of
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.report import Report
from vitdeploy.report.profile import MachineRow, ProfileResult

__all__ = [
    "DEVICES",
    "ProfileOptions",
    "profile",
    "profile_artifacts",
    "report_of_profile",
]


def profile(
    artifacts: Sequence[str | Path],
    *,
    batch: int = 1,
    seconds: float = 10.0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Return latency, throughput, memory and size of each artefact, measured interleaved.

    Speed-ups are against the first artefact; `profile_artifacts` has all the options.

    Args:
        artifacts: bundle folders, `.onnx` files, OpenVINO `.xml` files, model names.
        batch: images per run; artefacts of a fixed batch keep theirs.
        seconds: budget of timing for all.
        threads: as many as each engine likes where None.
        progress: told of the measurement's steps.

    Raises:
        UsageError: a path is none of these, or a number is out of range.
        ModelError: no such model.
        ExportError: an engine cannot load an artefact.
        DataError: an input's size is unknown, or a run fails.
    """
    options = ProfileOptions(batches=(batch,), seconds=seconds, threads=threads)
    return report_of_profile(profile_artifacts(artifacts, options, progress))


def profile_artifacts(
    artifacts: Sequence[str | Path], options: ProfileOptions, progress: Progress | None = None
) -> ProfileResult:
    """Return what was measured of each artefact on this machine.

    Args:
        artifacts: as of `profile`; the first is what ratios are against.
        options: how.
        progress: told of the measurement's steps.

    Raises:
        UsageError: a path is none of these, two have one name, or an option is out of range.
        UnsupportedError: the device, or what it needs, is missing here.
        ModelError: no such model.
        ExportError: an engine cannot load an artefact.
        DataError: an input's size is unknown, or a run fails.
    """
    require_valid(options)
    if not artifacts:
        raise UsageError("profile needs an artefact: a bundle, an ONNX file, a model's name.")
    require_device(options.device)
    told = progress or SilentProgress()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitdeploy-")))
        told.stage("load")
        sources = [s for name in artifacts for s in sources_of(str(name), options, work)]
        _require_unique(sources)
        pins = stack.enter_context(pinned(options.threads))
        parts, notes = _open_all(sources, options, stack, told)
        told.stage("latency")
        started = time.perf_counter()
        rows, machine = _measure(parts, options, pins, told)
        seconds = time.perf_counter() - started
        notes += [f"noisy machine: {finding}" for finding in machine.findings]
        roofline = None
        if options.with_roofline:
            told.stage("roofline")
            roofline, more = roofline_of(sources, rows.timings, options)
            notes += more
        return ProfileResult(
            reference=parts[0].source.name,
            device=options.device,
            is_isolated=options.is_isolated,
            seconds=seconds,
            timings=rows.timings,
            speedup=rows.speedup,
            loads=rows.loads,
            machine=machine,
            roofline=roofline,
            roofline_reason=None if roofline else "not asked for; --roofline measures it",
            environment=describe_environment(),
            notes=tuple(notes),
        )


def _require_unique(sources: Sequence[Source]) -> None:
    seen: set[tuple[str, str]] = set()
    for source in sources:
        key = (source.name, source.part)
        if key in seen:
            raise UsageError(
                f"two artefacts have the same name, '{source.name}'; rename one of the folders."
            )
        seen.add(key)


def _open_all(
    sources: Sequence[Source], options: ProfileOptions, stack: ExitStack, told: Progress
) -> tuple[list[OpenPart], list[str]]:
    """Return every source with every number of streams it can run, and notes on what cannot."""
    parts: list[OpenPart] = []
    notes: list[str] = []
    for number, source in enumerate(sources):
        told.step(number, len(sources))
        for streams in options.streams:
            if streams > 1 and source.engine == "target":
                notes.append(f"{source.name} runs one call at a time; no {streams} streams")
            else:
                parts.append(_open(source, streams, options, stack))
    if not parts:
        raise UnsupportedError(f"{notes[0]}. Profile it with --streams 1.")
    return parts, notes


def _open(source: Source, streams: int, options: ProfileOptions, stack: ExitStack) -> OpenPart:
    """Return a source in its engine, warm at each batch size; `stack` closes it."""
    station_of = IsolatedStation if options.is_isolated else LocalStation
    station: Station = station_of(source, Setup(options.device, options.threads, streams))
    stack.callback(station.close)
    loaded = station.open()
    cells = tuple(
        Cell(station, batch, streams, station.warm_up(batch))
        for batch in source.batches(options.batches)
    )
    return OpenPart(source, station, loaded, cells, station.peaks())


def _measure(
    parts: Sequence[OpenPart],
    options: ProfileOptions,
    pins: tuple[tuple[int, ...] | None, str | None],
    told: Progress,
) -> tuple[Rows, MachineRow]:
    """Return the rows of all parts, and how quiet the machine was meanwhile."""
    watch = MachineWatch(lambda: sum(part.station.helper_seconds() for part in parts))
    cells = [cell for part in parts for cell in part.cells]
    slots = run_rounds(cells, options.seconds, told.step)
    spread = spread_percent(round_medians(slots[0]))
    idle, energies = energy_of(cells)
    machine = watch.finish(spread, pins, idle)
    timed = [Timed(*one) for one in zip(cells, slots, energies, strict=True)]
    peaks = [part.station.peaks() for part in parts]
    others = ((machine.others_percent or 0.0) + (machine.steal_percent or 0.0)) / 100.0
    return result_of(parts, timed, peaks, options, min(1.0, others)), machine
