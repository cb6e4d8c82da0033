"""Model folders and image folders that tests write themselves: small, seeded, shaken."""

import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

VIT_ARGUMENTS = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
}


def shake_(model: torch.nn.Module, seed: int = 0) -> None:
    """Perturb every parameter, so that no zero hides a mistake and outputs follow the input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise if parameter.ndim < 2 else 0.05 * noise)


def write_vit_folder(folder: Path, num_classes: int = 3, seed: int = 0) -> Path:
    """Write a 32-pixel ViT with two blocks in timm's local-dir layout; return the folder."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **VIT_ARGUMENTS)
    shake_(model, seed)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": num_classes,
        "model_args": VIT_ARGUMENTS,
        "label_names": ["red", "green", "blue"][:num_classes],
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "num_classes": num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_images(folder: Path, per_class: int = 12, seed: int = 0) -> Path:
    """Write noisy red, green and blue pictures of 40 x 40 pixels in class folders."""
    rng = np.random.default_rng(seed)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            array = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            array[..., channel] += 100
            Image.fromarray(array).save(folder / name / f"{number:02}.png")
    return folder
