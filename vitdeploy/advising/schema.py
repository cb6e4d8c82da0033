"""The advice as data: `advice.json`, and the records that are kept between runs."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Objective = Literal["latency", "size", "energy"]
OBJECTIVES: tuple[Objective, ...] = ("latency", "size", "energy")
Status = Literal["done", "failed", "skipped", "waiting"]

_CONFIG = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class AdviceRow(BaseModel):
    """One candidate, and what became of it; what was not measured is null."""

    model_config = _CONFIG

    name: str
    variant: str
    precision: str
    """As asked for."""
    target: str
    status: Status
    reason: str | None = None
    """Why it failed, was skipped, or still waits."""
    kept_precision: str | None = None
    """What the artefact came to be: `mixed` where much stayed in float."""
    drop_points: float | None = None
    """Points lost against the model as given, in FP32; below 0 where it is better."""
    drop_metric: str | None = None
    latency_ms: float | None = None
    """Median, all parts together."""
    reference_ms: float | None = None
    """Of the model as given, in FP32 on ONNX Runtime, timed in turns with this candidate."""
    size_bytes: int | None = None
    """Of what a device loads."""
    reference_bytes: int | None = None
    energy_mj: float | None = None
    """Millijoules an image, processor and memory as far as the platform tells."""
    reference_mj: float | None = None
    seconds: float = 0.0
    """What trying it took, when it was tried."""
    is_from_cache: bool = False

    def relative_cost(self, objective: Objective) -> float | None:
        """Return its share of the reference's latency, size or energy; None if not measured.

        A share, because the reference is measured beside each candidate: a machine that is slower
        today than when another candidate was timed slows both.
        """
        own, reference = {
            "latency": (self.latency_ms, self.reference_ms),
            "size": (self.size_bytes, self.reference_bytes),
            "energy": (self.energy_mj, self.reference_mj),
        }[objective]
        return own / reference if own is not None and reference else None


class Tried(BaseModel):
    """A finished candidate as the cache keeps it."""

    model_config = _CONFIG

    row: AdviceRow
    recipe: str
    """YAML of the resolved recipe, which makes the same artefact again and times nothing."""


class Advice(BaseModel):
    """All that `vitdeploy advise` found."""

    model_config = _CONFIG

    schema_version: Literal[1] = 1
    vitdeploy_version: str
    model: str
    objective: Objective
    max_drop_points: float
    budget_seconds: float
    seconds: float
    """Spent on this run; candidates from the cache cost nothing."""
    rows: tuple[AdviceRow, ...]
    """In the order in which they were tried, then those that were not."""
    front: tuple[str, ...]
    """Names of the candidates that no other beats in both points lost and cost, cheapest first."""
    recommended: str | None
    """The cheapest on the front that keeps `max_drop_points`."""
    recommended_reason: str
    """Why this one, or why none."""
    command: str | None
    """Makes the recommended artefact; can be pasted."""
    is_complete: bool
    """False where candidates still wait, for time was up or somebody stopped it."""
    notes: tuple[str, ...] = ()
    environment: dict[str, str]

    def row(self, name: str) -> AdviceRow:
        """Return the row of the candidate called `name`; raises StopIteration for another."""
        return next(row for row in self.rows if row.name == name)
