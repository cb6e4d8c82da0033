"""Write the golden report and the published schema again: `python -m tests.report`."""

import json
from pathlib import Path

import vitdeploy.report
from tests.report.samples import sample
from vitdeploy.report import WRITERS, json_schema

GOLDEN = Path(__file__).parent / "golden" / "report.json"
SCHEMA = Path(vitdeploy.report.__file__).parent / "report.schema.json"


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(WRITERS["json"].render(sample()), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")
