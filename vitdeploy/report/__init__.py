"""The report of a run: its schema, and one writer per format, each `render(report) -> str`.

A new format is a module with `render` and a line in `WRITERS`. What is measured and how is
decided elsewhere; nothing here measures, prints or writes a file.
"""

from types import ModuleType

from vitdeploy.report import html, json, junit, markdown
from vitdeploy.report.diff import Change, diff
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
}

SHARED_MODULES = ("schema", "summary", "tables", "diff")
"""Modules of this package that are no writer themselves."""

__all__ = [
    "MIN_SAMPLES_FOR_P99",
    "PERCENTAGES",
    "SCHEMA_VERSION",
    "SHARED_MODULES",
    "WRITERS",
    "ArtifactRow",
    "Change",
    "FidelityRow",
    "GateRow",
    "ImagesInfo",
    "LatencyRow",
    "ModelInfo",
    "ParityRow",
    "PrecisionInfo",
    "Report",
    "SearchRow",
    "StageRow",
    "diff",
    "html",
    "json",
    "json_schema",
    "junit",
    "markdown",
    "read_report",
]
