"""The recipes that train: the published one word by word and in small, the laptop's as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

import vitdeploy
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.distilling import distill_from_recipe
from vitdeploy.models import LoadOptions, load
from vitdeploy.recipe import Recipe, recipe_from_dict, recipe_from_yaml

HOME = Path(__file__).resolve().parents[1]
RECIPES = HOME / "recipes"


def published() -> Recipe:
    return recipe_from_yaml(RECIPES / "deit-tiny-distillation.yaml")


def test_the_published_settings_are_unchanged():
    """The defaults of DeiT's main.py, with its distillation; the rate is scaled as it does."""
    section = published().distill
    assert section is not None
    assert (section.loss, section.alpha, section.tau) == ("hard", 0.5, 1.0)
    training = section.training
    assert (training.epochs, training.batch_size, training.optimizer) == (300, 1024, "adamw")
    assert training.lr == pytest.approx(5e-4 * training.batch_size / 512)
    assert (training.warmup_epochs, training.warmup_lr, training.min_lr) == (5, 1e-6, 1e-5)
    assert (training.weight_decay, training.clip_grad, training.ema) == (0.05, None, None)
    assert training.schedule_by == "epoch"
    augment = section.augment
    assert (augment.auto_augment, augment.color_jitter) == ("rand-m9-mstd0.5-inc1", 0.4)
    assert (augment.mixup, augment.cutmix, augment.erasing) == (0.8, 1.0, 0.25)
    assert (augment.smoothing, augment.repeats, augment.interpolation) == (0.1, 3, "bicubic")
    assert section.student is not None
    assert section.student.arguments == {"drop_path_rate": 0.1}
    assert published().model.source == "timm:regnety_160.deit_in1k"


def test_the_published_recipe_trains(tmp_path: Path):
    """All its settings but teacher, size, images, epochs, batch and FP16, which needs a GPU."""
    data: dict[str, Any] = published().model_dump(mode="json")
    data["model"]["source"] = str(write_vit_folder(tmp_path / "teacher"))
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    data["distill"]["student"]["arguments"] |= small
    data["distill"]["path"] = str(write_images(tmp_path / "images"))
    data["distill"]["eval_path"] = data["distill"]["path"]
    shorter = {"epochs": 2, "warmup_epochs": 1, "batch_size": 12, "precision": "fp32", "workers": 0}
    data["distill"]["training"] |= shorter
    recipe = recipe_from_dict(data)
    report = distill_from_recipe(recipe, tmp_path / "out")
    assert report.result.metrics[-1]["epoch"] == 2
    assert hasattr(load(LoadOptions(str(tmp_path / "out"))).parts[0].module, "head_dist")


def test_the_laptops_recipe_keeps_its_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A third of heads and channels goes; six epochs and no search, to be quick."""
    monkeypatch.chdir(HOME)
    data = recipe_from_yaml(RECIPES / "vit-digits-smaller-int8.yaml").model_dump(mode="json")
    data["targets"] = ["onnx"]
    data["measure"]["seconds"] = 0
    data["distill"]["training"]["epochs"] = 6
    data["int8"] |= {"folds": "off", "placement": "all", "rounding": "nearest"}
    report = vitdeploy.run(recipe_from_dict(data), output=tmp_path / "out")
    assert report.passed
    trained = json.loads((tmp_path / "out/training.json").read_text())
    assert trained["top1"] >= trained["top1_teachers"][0] - 1.0
    assert report.size_bytes["onnx"] < report.size_bytes["reference"] / 3.5
