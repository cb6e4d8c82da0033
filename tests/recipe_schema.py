"""Write the published schema of a recipe again: `python -m tests.recipe_schema`."""

import json
from pathlib import Path

from vitdeploy.recipe import Recipe

SCHEMA = Path(__file__).resolve().parents[1] / "recipes" / "recipe.schema.json"


def schema_text() -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(mode="validation"),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
