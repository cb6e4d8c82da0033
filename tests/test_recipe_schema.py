"""The published schema of a recipe is current, and agrees with what reading a recipe does."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.recipe_schema import SCHEMA, schema_text
from vitdeploy.recipe import recipe_from_yaml, yaml_from_recipe

RECIPES = sorted(SCHEMA.parent.glob("*.yaml"))


@pytest.fixture
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_up_to_date():
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "run python -m tests.recipe_schema"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_and_resolved_recipes_satisfy_it(
    path: Path, validator: jsonschema.Draft202012Validator
):
    validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    validator.validate(yaml.safe_load(yaml_from_recipe(recipe_from_yaml(path))))


@pytest.mark.parametrize(
    "change",
    [
        {"precison": "int8"},
        {"model": {"source": "vit-tiny", "chekpoint": "x"}},
        {"model": {}},
        {"targets": []},
        {"calibration": {"samples": 0}},
        {"schema_version": 2},
    ],
)
def test_it_refuses_mistakes(change: dict, validator: jsonschema.Draft202012Validator):
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"model": {"source": "vit-tiny"}, **change})


def test_every_section_has_described_fields():
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for name, section in schema["$defs"].items():
        assert section["additionalProperties"] is False, name
        assert section["description"], name
