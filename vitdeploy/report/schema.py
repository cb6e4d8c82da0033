"""The report, schema version 1: every figure of a run, and why a figure is missing.

What was not measured is null and a sibling `<field>_reason` says why; a value never comes
with a reason. Percentages run from 0 to 100. Adding a field keeps the version; removing one or
changing its meaning does not. How a report looks is the writers' matter.
"""

import json
from datetime import datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from vitdeploy.errors import DataError, UnsupportedError, UsageError
from vitdeploy.report.findings import BlockNoise, OutlierRow, WorstImage
from vitdeploy.report.profile import ProfileResult
from vitdeploy.report.row import Milliseconds, Name, Row

SCHEMA_VERSION = 1
PERCENTAGES = frozenset({"top1", "top5", "agreement", "recall_at_1", "knn_top1"})
"""Metrics whose reference and value are per cent, and whose delta is points."""
MIN_SAMPLES_FOR_P99 = 100


def _require_relative(path: str) -> str:
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor or ".." in path.split("/"):
        raise ValueError(f"'{path}' must be relative to the bundle; a report names no machine path")
    return path


def _require_utc(created: str) -> str:
    moment = datetime.fromisoformat(created.replace("Z", "+00:00"))
    if moment.utcoffset() is None or moment.utcoffset():
        raise ValueError(f"'{created}' must be ISO 8601 in UTC, such as 2025-01-31T12:00:00Z")
    return created


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelInfo(Row):
    """What was compressed."""

    name: Name
    family: Name
    source: Name
    task: Name
    weights: Literal["pretrained", "checkpoint", "random", "packaged", "unknown"]
    image_size: tuple[int, int] | None = Field(None, description="Height and width in pixels.")
    image_size_reason: str | None = None
    parameters: int | None = Field(None, ge=0)
    parameters_reason: str | None = None
    gmacs: float | None = Field(None, ge=0, description="1e9 multiply-accumulates per image.")
    gmacs_reason: str | None = None


class PrecisionInfo(Row):
    """What was asked for; each artefact says what was kept."""

    requested: Name


class ArtifactRow(Row):
    """One part built for one target."""

    target: Name
    part: Name
    precision: Name = Field(description="What was really kept, not what was asked for.")
    path: Annotated[str, AfterValidator(_require_relative)] = Field(
        description="Relative to the bundle, POSIX."
    )
    bytes: int = Field(
        ge=0, description="Of all files of the artefact: in a package, graphs for every version."
    )
    sha256: Sha256
    int8_macs_percent: float | None = Field(
        None, ge=0, le=100, description="Share of the MACs of layers with weights done in INT8."
    )
    int8_macs_percent_reason: str | None = None
    int4_weights_percent: float | None = Field(
        None, ge=0, le=100, description="Share of the weights of products in INT4; null where none."
    )
    activations: str | None = Field(
        None, description="What products with INT4 weights compute on: float32, bfloat16, int8, ..."
    )
    activations_sqnr_db: float | None = Field(
        None,
        description="What that costs: SQNR against the same weights on float32 activations; null "
        "where it was not measured or nothing differs.",
    )


class ImagesInfo(Row):
    """The images a step read."""

    name: Name
    origin: Literal["user", "packaged", "generic", "synthetic"]
    images: int = Field(ge=0)
    skipped: int = Field(0, ge=0, description="Images that could not be read.")
    digest: Name


class FidelityRow(Row):
    """One metric of one output: the FP32 reference's own value and the artefact's."""

    target: Name
    part: Name
    output: str | None = Field(None, description="The output compared; null for all together.")
    metric: Name
    reference: float | None = None
    reference_reason: str | None = None
    value: float | None = None
    value_reason: str | None = None
    delta: float | None = Field(None, description="value - reference; points for percentages.")
    delta_reason: str | None = None
    unit: Name
    n: int = Field(ge=0, description="Images compared; of masks, how many.")

    @model_validator(mode="after")
    def _check_percentages(self) -> "FidelityRow":
        if self.metric in PERCENTAGES or self.unit == "percent":
            for value in (self.reference, self.value):
                if value is not None and not 0 <= value <= 100:
                    raise ValueError(f"{self.metric} is per cent and {value} is not in 0..100")
        return self


class LatencyRow(Row):
    """Latency of one part on one engine; the FP32 reference has target `reference`."""

    target: Name
    part: Name
    engine: Name
    precision: Name
    batch: int = Field(ge=1)
    threads: int | None = Field(None, ge=1)
    threads_reason: str | None = None
    p50_ms: Milliseconds | None = None
    p50_ms_reason: str | None = None
    p90_ms: Milliseconds | None = None
    p90_ms_reason: str | None = None
    p99_ms: Milliseconds | None = Field(None, description="Null below 100 samples.")
    p99_ms_reason: str | None = None
    mean_ms: Milliseconds | None = None
    mean_ms_reason: str | None = None
    samples: int = Field(ge=0)
    throughput_ips: float | None = Field(None, ge=0, description="Images per second.")
    throughput_ips_reason: str | None = None
    quantiles_ms: tuple[Milliseconds, ...] = Field(
        (), description="The 0th, 5th, .. 100th percentile of the samples; none where unknown."
    )

    @model_validator(mode="after")
    def _check_percentiles(self) -> "LatencyRow":
        if self.p99_ms is not None and self.samples < MIN_SAMPLES_FOR_P99:
            raise ValueError(f"p99_ms of {self.samples} samples means nothing; it must be null")
        known = [ms for ms in (self.p50_ms, self.p90_ms, self.p99_ms) if ms is not None]
        if known != sorted(known):
            raise ValueError(f"percentiles must not fall: {known}")
        return self


class ParityRow(Row):
    """FP32 ONNX against the torch module or ONNX file, on one part at one batch size."""

    part: Name
    batch: int = Field(ge=1)
    max_abs_diff: float = Field(ge=0)
    max_relative: float = Field(ge=0)
    tolerance: float = Field(ge=0)
    passed: bool


class GateRow(Row):
    """One limit; a value that was not measured never passes."""

    name: Name
    limit: float
    value: float | None = None
    value_reason: str | None = None
    passed: bool

    @model_validator(mode="after")
    def _check_verdict(self) -> "GateRow":
        if self.value is None and self.passed:
            raise ValueError(f"gate '{self.name}' has no value, so it cannot pass")
        return self


class StageRow(Row):
    """What one stage of the run cost."""

    name: Name
    seconds: float = Field(ge=0)
    peak_rss_bytes: int | None = Field(None, ge=0)
    peak_rss_bytes_reason: str | None = None


class SearchRow(Row):
    """What the choices of one target and part cost, and what their budget did not allow."""

    target: Name
    part: Name
    seconds: float = Field(
        ge=0, description="Of measuring candidates, without the pass over all calibration images."
    )
    candidates: int = Field(
        ge=0, description="Rotations, and combinations of fold strength and range, measured."
    )
    skipped: tuple[str, ...] = Field((), description="What `int8.search_seconds` did not allow.")


class Report(Row):
    """Everything that was measured in one run."""

    schema_version: Literal[1] = 1
    vitdeploy_version: Name
    created: Annotated[str, AfterValidator(_require_utc)] | None = Field(
        None, description="ISO 8601, UTC; null where reports must be equal byte for byte."
    )
    model: ModelInfo
    precision: PrecisionInfo
    artifacts: tuple[ArtifactRow, ...] = ()
    stamps: tuple[str, ...] = Field(
        (), description="What a reader must know first: `random-weights`, `calibration: generic`."
    )
    calibration: ImagesInfo | None = None
    calibration_reason: str | None = None
    evaluation: ImagesInfo | None = None
    evaluation_reason: str | None = None
    fidelity: tuple[FidelityRow, ...] = ()
    latency: tuple[LatencyRow, ...] = ()
    speedup: dict[str, float | None] = Field(
        default_factory=dict,
        description="By target: median latency of the FP32 reference / the artefact's.",
    )
    speedup_reason: dict[str, str] = Field(default_factory=dict)
    size_bytes: dict[str, int] = Field(
        default_factory=dict,
        description="By target, of what a device loads; and `reference`, of the FP32 ONNX.",
    )
    parity: tuple[ParityRow, ...] = ()
    gates: tuple[GateRow, ...] = ()
    stages: tuple[StageRow, ...] = ()
    search: tuple[SearchRow, ...] = Field(
        (), description="A row for each target and part whose quantisation was searched for."
    )
    sensitivity: tuple[BlockNoise, ...] = Field(
        (), description="Of every INT8 artefact whose products were measured one by one."
    )
    outliers: tuple[OutlierRow, ...] = Field((), description="Of INT8 artefacts.")
    worst_images: tuple[WorstImage, ...] = Field((), description="By target, the worst first.")
    environment: dict[str, str] = Field(default_factory=dict)
    recipe_sha256: Sha256 | None = None
    recipe_sha256_reason: str | None = None
    notes: tuple[str, ...] = Field((), description="Advice for people.")
    profile: ProfileResult | None = Field(
        None, description="What `vitdeploy profile` found beyond the rows of `latency`."
    )
    device: dict[str, Any] | None = Field(
        None, description="What a build on the device found; `report show` puts it in."
    )

    @property
    def passed(self) -> bool:
        """Return whether every gate passed; true where there is none."""
        return all(gate.passed for gate in self.gates)

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the targets in the order of the artefacts, each once."""
        return tuple(dict.fromkeys(row.target for row in self.artifacts))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a written report, in which every field is present."""
    schema = Report.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def read_report(path: Path) -> Report:
    """Return the report in the JSON file `path`.

    Raises:
        UsageError: there is no such file.
        DataError: it is not JSON, or not a report.
        UnsupportedError: it has a schema version this vitdeploy does not know.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no report '{path}'. Name a bundle, or the report.json in it."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"Cannot read the report '{path}': {error}. Copy it again.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UnsupportedError(
            f"'{path}' has schema_version {version}; this vitdeploy reads up to {SCHEMA_VERSION}. "
            "Upgrade vitdeploy."
        )
    try:
        return Report.model_validate_json(json.dumps(data))
    except ValidationError as error:
        lines = "\n".join(
            f"  {'.'.join(str(step) for step in item['loc']) or 'report'}: {item['msg']}"
            for item in error.errors()
        )
        raise DataError(
            f"'{path}' is not a report that this vitdeploy can read:\n{lines}\n"
            "It was edited, or a newer vitdeploy wrote it; upgrade, or export again."
        ) from error
