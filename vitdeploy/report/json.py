"""`report.json`: the report for programs; `report.schema.json` describes it."""

import json

from vitdeploy.report.schema import Report


def render(report: Report) -> str:
    """Return the report as JSON: fields in the order of the schema, mappings sorted by key.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.
    """
    data = report.model_dump(mode="json")
    for name, value in data.items():
        if name in {"speedup", "speedup_reason", "size_bytes", "environment"}:
            data[name] = dict(sorted(value.items()))
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
