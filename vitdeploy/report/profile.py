"""What `vitdeploy profile` finds, as data; nothing here measures or renders.

Times are those of one call with a whole batch. A ratio is the reference's time over the
artefact's, so that more is faster, as in the report's `speedup`.
"""

from pydantic import Field

from vitdeploy.report.row import Milliseconds, Name, Row

Percent = float


class Ratio(Row):
    """How many times as fast as the reference, and where a repeat of the measurement falls."""

    value: float = Field(gt=0, description="Median over the rounds of reference / artefact.")
    low: float | None = Field(
        None,
        gt=0,
        description="A repeat falls between `low` and `high` in 95 of 100 cases: bootstrap over "
        "blocks of rounds, so that the machine's slow drift is in it.",
    )
    low_reason: str | None = None
    high: float | None = Field(None, gt=0)
    high_reason: str | None = None


class TimingRow(Row):
    """Latency and throughput of one artefact at one batch size and number of streams."""

    name: Name = Field(description="The artefact: `BUNDLE:TARGET`, a file, `MODEL:torch`.")
    part: Name
    engine: Name = Field(description="With its version.")
    device: Name
    precision: Name
    batch: int = Field(ge=1)
    streams: int = Field(ge=1, description="Runs in flight at once.")
    threads: int | None = Field(None, ge=1, description="Of one engine, for all its streams.")
    threads_reason: str | None = None
    samples: int = Field(ge=1)
    rounds: int = Field(ge=1)
    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p99_ms: Milliseconds | None = Field(None, description="Null below 100 samples.")
    p99_ms_reason: str | None = None
    mean_ms: Milliseconds
    jitter_ms: Milliseconds | None = Field(
        None, description="Mean |difference| of a run from the one before it, within a round."
    )
    jitter_ms_reason: str | None = None
    spread_percent: Percent = Field(
        ge=0, description="Of the rounds' medians: 10th to 90th percentile, over their median."
    )
    quantiles_ms: tuple[Milliseconds, ...] = Field(
        description="The 0th, 5th, .. 100th percentile of the samples."
    )
    throughput_ips: float = Field(ge=0, description="Images a second while it ran.")
    ratio: Ratio | None = None
    ratio_reason: str | None = None
    energy_mj: float | None = Field(
        None, ge=0, description="Millijoules an image, of all that the platform's counter sees."
    )
    energy_mj_reason: str | None = None


class LoadRow(Row):
    """What one part of an artefact costs before its first steady run, and its memory."""

    name: Name
    part: Name
    streams: int = Field(ge=1)
    size_bytes: int | None = Field(None, ge=0, description="Of the files an engine loads.")
    size_bytes_reason: str | None = None
    load_ms: Milliseconds = Field(description="From the files to an engine that can run.")
    first_ms: Milliseconds = Field(description="The first run, at the first batch size.")
    warmup_runs: int = Field(ge=1)
    is_warm: bool = Field(description="Whether its time had stopped falling when timing began.")
    engine_peak_bytes: int | None = Field(
        None, ge=0, description="Most resident memory while it loaded and warmed up, less before."
    )
    engine_peak_bytes_reason: str | None = None
    process_peak_bytes: int | None = Field(
        None, ge=0, description="Most resident memory of a process that runs it alone."
    )
    process_peak_bytes_reason: str | None = None


class MachineRow(Row):
    """How quiet the machine was while it was measured."""

    is_noisy: bool
    findings: tuple[str, ...] = Field((), description="What was noisy, for people.")
    pinned_cpus: tuple[int, ...] | None = Field(None, description="The only CPUs that were used.")
    pinned_cpus_reason: str | None = None
    load_1m: float | None = Field(None, ge=0, description="Load average of a minute, before.")
    load_1m_reason: str | None = None
    steal_percent: Percent | None = Field(
        None, ge=0, description="CPU time that other virtual machines took."
    )
    steal_percent_reason: str | None = None
    others_percent: Percent | None = Field(
        None, ge=0, description="CPU time of other processes, of all CPUs."
    )
    others_percent_reason: str | None = None
    throttled_percent: Percent | None = Field(
        None, ge=0, description="Time that the container's CPU quota held it back."
    )
    throttled_percent_reason: str | None = None
    frequency_mhz: tuple[float, float] | None = Field(
        None, description="Lowest and highest clock of a CPU, seen before and after."
    )
    frequency_mhz_reason: str | None = None
    spread_percent: Percent = Field(ge=0, description="Of the reference's rounds.")
    idle_watts: float | None = Field(None, ge=0)
    idle_watts_reason: str | None = None


class Ceilings(Row):
    """What this machine reaches at best, as measured: the roof of the roofline."""

    tops: dict[str, float | None] = Field(
        description="10^12 operations a second, two a multiply-accumulate, by type: fp32, bf16, "
        "fp16, int8; the best of a few matrix products."
    )
    tops_reason: dict[str, str] = Field(default_factory=dict)
    bandwidth_gbs: float = Field(gt=0, description="10^9 bytes a second of a copy, read + written.")
    threads: int = Field(ge=1)
    measured_with: Name


class LayerWork(Row):
    """One layer of an engine's own graph against the ceilings."""

    name: Name
    kind: Name
    type: Name = Field(description="What it multiplies in: fp32, bf16, fp16, int8.")
    milliseconds: Milliseconds = Field(
        description="Of the engine's counters, the fastest of a few runs."
    )
    share_percent: Percent = Field(ge=0, description="Of the time of all layers.")
    macs: int | None = Field(None, ge=0, description="Multiply-accumulates of a run.")
    macs_reason: str | None = None
    bytes: int | None = Field(None, ge=0, description="Inputs, weights and outputs.")
    bytes_reason: str | None = None
    utilisation_percent: Percent | None = Field(
        None, ge=0, description="Its arithmetic at the ceiling, of the time it took."
    )
    utilisation_percent_reason: str | None = None
    is_memory_bound: bool = Field(
        description="Whether its bytes at the bandwidth take longer than its arithmetic."
    )


class ArtefactWork(Row):
    """One part of an artefact against the ceilings, at one batch size."""

    name: Name
    part: Name
    precision: Name
    batch: int = Field(ge=1)
    macs: dict[str, int] = Field(description="Multiply-accumulates of a run by type.")
    bytes: int = Field(ge=0, description="Weights, inputs and outputs: what must be moved.")
    p50_ms: Milliseconds
    limit_ms: Milliseconds = Field(description="The least time that the ceilings allow.")
    compute_percent: Percent = Field(ge=0, description="Arithmetic at its ceilings, of p50.")
    bandwidth_percent: Percent = Field(ge=0, description="Bytes at the bandwidth, of p50.")
    utilisation_percent: Percent = Field(ge=0, description="`limit_ms` of `p50_ms`.")
    products_percent: Percent = Field(
        ge=0, le=100, description="Of the layers' time, that of matrix products."
    )
    layers: tuple[LayerWork, ...] = Field(description="The slowest, slowest first.")


class RooflineResult(Row):
    """The ceilings, and how far each artefact is from them."""

    ceilings: Ceilings
    artefacts: tuple[ArtefactWork, ...]
    skipped: dict[str, str] = Field(
        default_factory=dict, description="By `NAME/PART`: why its work was not counted."
    )


class ProfileResult(Row):
    """One call of `vitdeploy profile`."""

    reference: Name = Field(description="The artefact that ratios are against: the first one.")
    device: Name
    is_isolated: bool = Field(description="Whether each artefact ran in a process of its own.")
    seconds: float = Field(ge=0, description="Of the measurement, without loading.")
    timings: tuple[TimingRow, ...]
    speedup: dict[str, Ratio] = Field(
        default_factory=dict,
        description="By artefact, all its parts together, at the first batch and one stream.",
    )
    loads: tuple[LoadRow, ...]
    machine: MachineRow
    roofline: RooflineResult | None = None
    roofline_reason: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
