"""Small model folders and checkpoints, written by the tests themselves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TINY_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
}
TINY_FASTVIT = {
    "layers": (1, 1, 1, 1),
    "embed_dims": (16, 16, 32, 32),
    "mlp_ratios": (2, 2, 2, 2),
    "token_mixers": ("repmixer", "repmixer", "repmixer", "attention"),
}
LABELS = ["ant", "bee", "cat"]


def timm_config(
    architecture: str, model_args: dict[str, Any], classes: int, size: int
) -> dict[str, Any]:
    """A config.json of timm's hub layout."""
    return {
        "architecture": architecture,
        "num_classes": classes,
        "label_names": LABELS[:classes],
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bilinear",
            "crop_pct": 0.8,
            "crop_mode": "center",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "num_classes": classes,
        },
    }


@pytest.fixture
def timm_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model folder in timm's layout, with seeded weights."""

    def write(
        architecture: str = "vit_tiny_patch16_224",
        model_args: dict[str, Any] | None = None,
        *,
        classes: int = 3,
        size: int = 32,
        name: str = "tiny",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        args = TINY_VIT if model_args is None else model_args
        config = timm_config(architecture, args, classes, size)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=classes, **args)
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()},
            folder / "model.safetensors",
        )
        return folder

    return write


@pytest.fixture
def transformers_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model folder with transformers' save_pretrained, with seeded weights."""

    def write(config: Any, *, classifier: bool, processor: dict[str, Any] | None = None) -> Path:
        from transformers import AutoModel, AutoModelForImageClassification

        auto = AutoModelForImageClassification if classifier else AutoModel
        folder = tmp_path / "hf"
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(folder)
        if processor is not None:
            text = json.dumps(processor)
            (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and an empty cache."""
    from huggingface_hub import constants

    from vitdeploy.models import hub

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_is_reachable", lambda endpoint: False)


@pytest.fixture
def pictures() -> Callable[[int], torch.Tensor]:
    """Two smooth, different inputs of a size: (2, 3, H, W) float32."""

    def draw(size: int) -> torch.Tensor:
        cells = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        return torch.nn.functional.interpolate(cells, size=(size, size), mode="bicubic")

    return draw


@pytest.fixture
def cached_hub(empty_hub: None, tmp_path: Path) -> Callable[[str, Path], None]:
    """Puts a folder where the hub's cache keeps a downloaded repository; no network."""

    def put(repository: str, folder: Path) -> None:
        home = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
        commit = "0" * 40
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(commit, encoding="utf-8")
        shutil.copytree(folder, home / "snapshots" / commit)

    return put
