"""Trains `vit-digits`, the small ViT that ships with vitdeploy, on a CPU in a few minutes.

    python recipes/train_vit_digits.py [--output FOLDER]

Data: the 1797 digits of scikit-learn without the 500 of `calib_data/digits/eval`, on which the
last line reports top-1. There is no early stopping and no best epoch; the settings below were
chosen on the 300 digits of `calib_data/digits/calib`, left out of training for that.
Two runs on one machine write the same bytes.
"""

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save as serialize
from sklearn.datasets import load_digits
from torch import Tensor, nn

from vitdeploy.data import Preprocess, load_batches, packaged_set, prepare

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    "global_pool": "avg",
}
PREPROCESS = Preprocess((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0, "center")
EPOCHS = 50
BATCH = 32
PEAK_LEARNING_RATE = 2e-3
WARM_UP = 0.2  # share of all steps
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.3
LABEL_SMOOTHING = 0.1
EMA_DECAY = 0.99
THREADS = 1  # the order of floating-point sums, so the result, depends on it


def main() -> None:
    """Train, save in timm's folder layout, and report top-1 on the held-out digits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    home = Path(__file__).resolve().parents[1]
    parser.add_argument("--output", type=Path, default=home / "vitdeploy/models/vit_digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(options.seed)
    images, labels = training_digits()
    model = timm.create_model(ARCHITECTURE, num_classes=10, weight_init="jax", **MODEL_ARGS)
    trained = train(model, images, labels, options.epochs)
    save(trained, options.output)
    sys.stdout.write(f"top-1 on the 500 held-out digits: {top1(trained):.2f} %\n")


def training_digits() -> tuple[Tensor, Tensor]:
    """Return (N, 3, 32, 32) float32, normalised, and (N,) labels: all but the held-out digits."""
    held_out = {int(path.stem) for path in packaged_set("digits", "eval").paths}
    digits = load_digits()
    indices = [index for index in range(len(digits.target)) if index not in held_out]
    arrays = [
        prepare(Image.fromarray(np.round(digits.images[i] * 255 / 16).astype(np.uint8)), PREPROCESS)
        for i in indices
    ]
    return torch.from_numpy(np.stack(arrays)), torch.from_numpy(digits.target[indices])


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Return the running mean of `model`'s weights over its training, in eval mode."""
    mean = copy.deepcopy(model).eval()
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, steps, pct_start=WARM_UP
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    model.train()
    for epoch in range(epochs):
        for batch, target in _batches(images, labels):
            loss = criterion(model(jitter(batch)), target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for average, value in zip(mean.parameters(), model.parameters(), strict=True):
                    average.lerp_(value, 1 - EMA_DECAY)
        sys.stderr.write(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}\n")
    return mean


def _batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled batches of one size."""
    order = torch.randperm(len(images))
    for start in range(0, len(images) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        yield images[chosen], labels[chosen]


def jitter(images: Tensor) -> Tensor:
    """Return `images` (N, 3, H, W) each turned, scaled, sheared and shifted a little.

    Up to 12 degrees, 15 % in size, 0.1 in shear, 2.5 of 32 pixels; what comes in is background.
    """
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * np.deg2rad(12)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.15
    shear = (torch.rand(count) * 2 - 1) * 0.1
    shift = (torch.rand(count, 2) * 2 - 1) * (2.5 / 16)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack(
        [cosine, shear * cosine - sine, shift[:, 0], sine, shear * sine + cosine, shift[:, 1]], 1
    )
    grid = nn.functional.affine_grid(
        rows.view(count, 2, 3), list(images.shape), align_corners=False
    )
    # +1 so that the zeros that grid_sample pads with are the background, -1 after normalising
    return nn.functional.grid_sample(images + 1, grid, align_corners=False) - 1


def save(model: nn.Module, folder: Path) -> None:
    """Write config.json and model.safetensors in the layout of timm's `local-dir:`."""
    names = [str(digit) for digit in range(10)]
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 10,
        "num_features": MODEL_ARGS["embed_dim"],
        "label_names": names,
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "input_size": [3, *PREPROCESS.size],
            "interpolation": PREPROCESS.interpolation,
            "crop_pct": PREPROCESS.crop_pct,
            "crop_mode": PREPROCESS.crop_mode,
            "mean": list(PREPROCESS.mean),
            "std": list(PREPROCESS.std),
            "num_classes": 10,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
            "label_names": names,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors").write_bytes(serialize(model.state_dict()))


@torch.inference_mode()
def top1(model: nn.Module) -> float:
    """Return top-1 in percent on `calib_data/digits/eval`."""
    digits = packaged_set("digits", "eval")
    labels = np.asarray(digits.labels)
    hits = [
        model(torch.from_numpy(images)).argmax(1).numpy() == labels[indices]
        for images, indices in load_batches(digits, PREPROCESS, 100)
    ]
    return 100 * float(np.concatenate(hits).mean())


if __name__ == "__main__":
    main()
