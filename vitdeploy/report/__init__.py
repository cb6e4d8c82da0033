"""The report of a run: its schema, and one writer per format, each `render(report) -> str`.

A new format is a module with `render` and a line in `WRITERS`. What is measured and how is
decided elsewhere; nothing here measures, prints or writes a file.
"""

from types import ModuleType

from vitdeploy.report import brief, html, json, junit, markdown
from vitdeploy.report.diff import Change, diff
from vitdeploy.report.findings import BlockNoise, OutlierRow, WorstImage
from vitdeploy.report.regression import Limits, Regression, is_same_machine, regressions
from vitdeploy.report.schema import (
    MIN_SAMPLES_FOR_P99,
    PERCENTAGES,
    SCHEMA_VERSION,
    ArtifactRow,
    FidelityRow,
    GateRow,
    ImagesInfo,
    LatencyRow,
    ModelInfo,
    ParityRow,
    PrecisionInfo,
    Report,
    SearchRow,
    StageRow,
    json_schema,
    read_report,
)

WRITERS: dict[str, ModuleType] = {
    "json": json,
    "html": html,
    "markdown": markdown,
    "junit": junit,
    "brief": brief,
}

SHARED_MODULES = (
    "schema",
    "row",
    "profile",
    "summary",
    "tables",
    "diff",
    "regression",
    "verdict",
    "findings",
    "charts",
    "drawing",
)
"""Modules of this package that are no writer themselves."""

__all__ = [
    "MIN_SAMPLES_FOR_P99",
    "PERCENTAGES",
    "SCHEMA_VERSION",
    "SHARED_MODULES",
    "WRITERS",
    "ArtifactRow",
    "BlockNoise",
    "Change",
    "FidelityRow",
    "GateRow",
    "ImagesInfo",
    "LatencyRow",
    "Limits",
    "ModelInfo",
    "OutlierRow",
    "ParityRow",
    "PrecisionInfo",
    "Regression",
    "Report",
    "SearchRow",
    "StageRow",
    "WorstImage",
    "brief",
    "diff",
    "html",
    "is_same_machine",
    "json",
    "json_schema",
    "junit",
    "markdown",
    "read_report",
    "regressions",
]
