from pathlib import Path

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.recipe import (
    Recipe,
    recipe_from_dict,
    recipe_from_yaml,
    recipe_sha256,
    yaml_from_recipe,
)


def test_yaml_round_trip_keeps_everything(tmp_path: Path):
    recipe = recipe_from_dict(
        {
            "model": {"source": "vit-tiny", "random_weights": True},
            "precision": "w8a8",
            "targets": ["ov", "onnx", "openvino"],
            "gates": {"max_drop_points": 0.5},
        }
    )
    assert recipe.precision == "int8"
    assert recipe.targets == ("openvino", "onnx")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml_from_recipe(recipe))
    assert recipe_from_yaml(path) == recipe


def test_every_mistake_is_listed_at_once():
    with pytest.raises(UsageError) as caught:
        recipe_from_dict(
            {
                "model": {"source": "vit-tiny", "chekpoint": "x"},
                "precison": "int8",
                "targets": ["onyx"],
                "calibration": {"samples": 0},
            }
        )
    message = str(caught.value)
    assert "4 mistake(s)" in message
    assert "model.chekpoint: unknown key" in message
    assert "Did you mean 'checkpoint'?" in message
    assert "Did you mean 'precision'?" in message
    assert "Did you mean 'onnx'?" in message
    assert "calibration.samples" in message
    assert "(got 0)" in message


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_refuses_what_is_no_mapping(data: object):
    with pytest.raises(UsageError, match="mapping"):
        recipe_from_dict(data)


def test_refuses_code_in_yaml(tmp_path: Path):
    path = tmp_path / "evil.yaml"
    path.write_text(f"model: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(UsageError, match="not valid YAML"):
        recipe_from_yaml(path)
    assert not (tmp_path / "made").exists()


def test_refuses_missing_and_binary_files(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be read"):
        recipe_from_yaml(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError):
        recipe_from_yaml(tmp_path / "b.yaml")


def test_refuses_two_origins_of_weights():
    with pytest.raises(UsageError, match="not both"):
        recipe_from_dict(
            {"model": {"source": "vit-tiny", "checkpoint": "a.pth", "random_weights": True}}
        )


def test_int4_is_w4a16():
    recipe = recipe_from_dict({"model": {"source": "vit-tiny"}, "precision": "int4"})
    assert recipe.precision == "w4a16"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"export": {"opset": 20}}, "INT4 weights came with opset 21"),
        ({"int4": {"zero_points": True}, "targets": ["trt"]}, "TensorRT's INT4 has none"),
        ({"int4": {"min_sqnr_db": 30}}, "goals of 'mixed'"),
        ({"int4": {"mixed": True, "min_sqnr_db": 30, "max_size_percent": 20}}, "not both"),
        ({"int4": {"block_size": 48}}, "16, 32, 64 or 128"),
    ],
)
def test_refuses_int4_that_no_graph_can_hold(data: dict, said: str):
    with pytest.raises(UsageError, match=said):
        recipe_from_dict({"model": {"source": "vit-tiny"}, "precision": "w4a16", **data})


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ("cls,patches", "unknown outputs 'patches'; allowed: logits, .* Did you mean 'patch'"),
        ("pixel-shuffle-1", "pixel-shuffle-K with K from 2"),
        ("cls,cls", "each kind can be asked for once"),
        ("pixel-shuffle-2,pixel-shuffle-4", "each kind can be asked for once"),
        ("features,cls", "features and pyramid are asked for alone"),
        ("", "unknown outputs ''"),
    ],
)
def test_refuses_outputs_that_no_graph_can_have(outputs: str, said: str):
    with pytest.raises(UsageError, match=said):
        recipe_from_dict({"model": {"source": "vit-digits", "outputs": outputs}})


def test_outputs_are_listed_with_commas():
    model = {"source": "vit-digits", "outputs": "CLS, pixel-shuffle-2"}
    assert recipe_from_dict({"model": model}).model.outputs == "cls,pixel-shuffle-2"
    model["outputs"] = "attention"
    with pytest.raises(UsageError, match="run `vitdeploy prune` first"):
        recipe_from_dict({"model": model, "prune": {"heads": 0.1}})


def test_recipe_is_frozen():
    recipe = recipe_from_dict({"model": {"source": "vit-tiny"}})
    with pytest.raises(ValueError, match="frozen"):
        recipe.precision = "int8"


def test_hash_ignores_the_output_folder_only():
    recipe = recipe_from_dict({"model": {"source": "vit-tiny"}})
    assert recipe_sha256(recipe) == recipe_sha256(recipe.model_copy(update={"output": "x"}))
    assert recipe_sha256(recipe) != recipe_sha256(recipe.model_copy(update={"seed": 1}))


RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path):
    assert isinstance(recipe_from_yaml(path), Recipe)
