"""Slots, loads and memory -> the rows of a `ProfileResult`, and the report of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from vitdeploy.profiling.energy_use import Figure
from vitdeploy.profiling.options import ProfileOptions
from vitdeploy.profiling.rounds import Cell
from vitdeploy.profiling.stations import Loaded, Peaks, Slot, Station
from vitdeploy.profiling.statistics import (
    QUANTILES,
    Floats,
    jitter_ms,
    ratio_of,
    round_medians,
    samples_of,
    spread_percent,
)
from vitdeploy.profiling.subjects import Source
from vitdeploy.report import LatencyRow, ModelInfo, PrecisionInfo, Report
from vitdeploy.report.profile import LoadRow, ProfileResult, Ratio, TimingRow
from vitdeploy.report.schema import MIN_SAMPLES_FOR_P99
from vitdeploy.version import __version__

_SAME = Ratio(value=1.0, low=1.0, high=1.0)
"""Of the reference against itself."""


@dataclass(frozen=True)
class OpenPart:
    """One part of an artefact, in its engine and warm."""

    source: Source
    station: Station
    loaded: Loaded
    cells: tuple[Cell, ...]
    peaks: Peaks
    """After it warmed up, before the next one was opened."""


@dataclass(frozen=True)
class Timed:
    """One cell and what was measured of it."""

    cell: Cell
    slots: Sequence[Slot]
    energy: Figure
    """Millijoules an image."""


@dataclass(frozen=True)
class _Table:
    """Everything that was measured, as ratios need it."""

    parts: Sequence[OpenPart]
    by_cell: Mapping[int, Timed]
    """By `id` of the cell."""
    others_share: float


@dataclass(frozen=True)
class Rows:
    """What a result has of each artefact."""

    timings: tuple[TimingRow, ...]
    speedup: dict[str, Ratio]
    loads: tuple[LoadRow, ...]


def result_of(
    parts: Sequence[OpenPart],
    timed: Sequence[Timed],
    peaks: Sequence[Peaks],
    options: ProfileOptions,
    others_share: float = 0.0,
) -> Rows:
    """Return the rows of all artefacts; ratios are against the first.

    Args:
        parts: in the order they were opened.
        timed: their cells, in the same order.
        peaks: of each part, at the end.
        options: what was asked for.
        others_share: of the CPU time, what went to other work; see `ratio_of`.
    """
    table = _Table(parts, {id(one.cell): one for one in timed}, others_share)
    timings = tuple(
        _timing_row(part, table.by_cell[id(cell)], table, options)
        for part in parts
        for cell in part.cells
    )
    loads = tuple(
        _load_row(part, own, options, len(parts)) for part, own in zip(parts, peaks, strict=True)
    )
    return Rows(timings, _speedups(table), loads)


def _timing_row(
    part: OpenPart,
    timed: Timed,
    table: _Table,
    options: ProfileOptions,
) -> TimingRow:
    source, cell, slots = part.source, timed.cell, timed.slots
    samples = samples_of(slots)
    count = len(samples)
    jitter = jitter_ms(slots) if cell.streams == 1 else None
    no_jitter = "runs of several streams overlap" if cell.streams > 1 else "one run a round"
    ratio, ratio_reason = _ratio(part, timed, table)
    few = f"{count} samples; {MIN_SAMPLES_FOR_P99} are needed"
    enough = count >= MIN_SAMPLES_FOR_P99
    threads = part.loaded.threads
    return TimingRow(
        name=source.name,
        part=source.part,
        engine=part.loaded.engine,
        device=options.device,
        precision=source.precision,
        batch=cell.batch,
        streams=cell.streams,
        threads=threads,
        threads_reason=None if threads else "the device runs it",
        samples=count,
        rounds=len(slots),
        p50_ms=float(np.percentile(samples, 50)),
        p90_ms=float(np.percentile(samples, 90)),
        p99_ms=float(np.percentile(samples, 99)) if enough else None,
        p99_ms_reason=None if enough else few,
        mean_ms=float(samples.mean()),
        jitter_ms=jitter,
        jitter_ms_reason=None if jitter is not None else no_jitter,
        spread_percent=spread_percent(round_medians(slots)),
        quantiles_ms=tuple(float(value) for value in np.percentile(samples, QUANTILES)),
        throughput_ips=_throughput(cell, slots),
        ratio=ratio,
        ratio_reason=ratio_reason,
        energy_mj=timed.energy[0],
        energy_mj_reason=timed.energy[1],
    )


def _throughput(cell: Cell, slots: Sequence[Slot]) -> float:
    """Return images a second: at the median latency of one stream, over the slots of several."""
    if cell.streams == 1:
        return 1000.0 * cell.batch / float(np.percentile(samples_of(slots), 50))
    images = cell.batch * sum(len(slot.latencies_ms) for slot in slots)
    return images / sum(slot.seconds for slot in slots)


def _ratio(part: OpenPart, timed: Timed, table: _Table) -> tuple[Ratio | None, str | None]:
    """Return the ratio against the reference's same part, batch and streams, or why none."""
    first = table.parts[0].source.name
    own = [p for p in table.parts if p.source.name == part.source.name]
    theirs = [p for p in table.parts if p.source.name == first]
    is_single = len({p.source.part for p in own}) == len({p.source.part for p in theirs}) == 1
    for other in theirs:
        for cell in other.cells:
            same = (cell.batch, cell.streams) == (timed.cell.batch, timed.cell.streams)
            if same and (is_single or other.source.part == part.source.part):
                reference = table.by_cell[id(cell)]
                if reference is timed:
                    return _SAME, None
                medians = round_medians(reference.slots), round_medians(timed.slots)
                return ratio_of(*medians, table.others_share), None
    return None, (
        f"{first} was not run as part '{part.source.part}' at batch {timed.cell.batch} with "
        f"{timed.cell.streams} stream(s)"
    )


def _speedups(table: _Table) -> dict[str, Ratio]:
    """Return by artefact the ratio of all its parts together, at the first batch, one stream."""
    whole: dict[str, Floats] = {}
    for part in table.parts:
        if part.cells[0].streams == 1:
            medians = round_medians(table.by_cell[id(part.cells[0])].slots)
            name = part.source.name
            whole[name] = whole[name] + medians if name in whole else medians
    reference = whole.get(table.parts[0].source.name)
    if reference is None:
        return {}
    return {
        name: _SAME if own is reference else ratio_of(reference, own, table.others_share)
        for name, own in whole.items()
    }


def _load_row(part: OpenPart, final: Peaks, options: ProfileOptions, count: int) -> LoadRow:
    source = part.source
    alone = options.is_isolated or count == 1
    warm = [cell.warmth for cell in part.cells]
    no_size = "it has no file; its parameters take it"
    return LoadRow(
        name=source.name,
        part=source.part,
        streams=part.cells[0].streams,
        size_bytes=source.size_bytes,
        size_bytes_reason=None if source.size_bytes is not None else no_size,
        load_ms=part.loaded.load_ms,
        first_ms=warm[0].first_ms,
        warmup_runs=sum(one.runs for one in warm),
        is_warm=all(one.is_warm for one in warm),
        engine_peak_bytes=part.peaks.engine_bytes if part.peaks.reset_reason is None else None,
        engine_peak_bytes_reason=part.peaks.reset_reason,
        process_peak_bytes=final.process_bytes if alone else None,
        process_peak_bytes_reason=None if alone else "engines share a process; --isolate tells",
    )


def report_of_profile(result: ProfileResult) -> Report:
    """Return the report of a profile: `latency` has its rows of one stream."""
    unknown = "a profile measures latency only"
    names = list(dict.fromkeys(row.name for row in result.timings))
    sizes: dict[str, int] = {}
    for row in result.loads:
        if row.size_bytes is not None and row.streams == result.loads[0].streams:
            sizes[row.name] = sizes.get(row.name, 0) + row.size_bytes
    values = {
        name: result.speedup[name].value if name in result.speedup else None for name in names
    }
    no_value = "not run with one stream"
    return Report(
        vitdeploy_version=__version__,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        model=ModelInfo(
            name=", ".join(names),
            family="any",
            source="profile",
            task="any",
            weights="unknown",
            image_size_reason=unknown,
            parameters_reason=unknown,
            gmacs_reason=unknown,
        ),
        precision=PrecisionInfo(requested="as built"),
        calibration_reason=unknown,
        evaluation_reason=unknown,
        latency=tuple(_latency_row(row) for row in result.timings if row.streams == 1),
        speedup=values,
        speedup_reason={name: no_value for name, value in values.items() if value is None},
        size_bytes=sizes,
        profile=result,
        environment=result.environment,
        recipe_sha256_reason=unknown,
        notes=result.notes,
    )


def _latency_row(row: TimingRow) -> LatencyRow:
    return LatencyRow(
        target=row.name,
        part=row.part,
        engine=row.engine,
        precision=row.precision,
        batch=row.batch,
        threads=row.threads,
        threads_reason=row.threads_reason,
        p50_ms=row.p50_ms,
        p90_ms=row.p90_ms,
        p99_ms=row.p99_ms,
        p99_ms_reason=row.p99_ms_reason,
        mean_ms=row.mean_ms,
        samples=row.samples,
        throughput_ips=row.throughput_ips,
        quantiles_ms=row.quantiles_ms,
    )
