"""Trains `sam-scenes`, the small SAM that ships with vitdeploy, on one CPU core.

    python recipes/train_sam_scenes.py [--output FOLDER]

Data: rendered pictures whose masks are known, drawn as training goes; the last lines report the
mask IoU on `calib_data/scenes/eval`, drawn from another seed. There is no early stopping and no
best step. Two runs on one machine write the same bytes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn import functional
from transformers import SamConfig, SamModel

from vitdeploy.data import Picture, Preprocess, packaged_set, prepare
from vitdeploy.data.packaged import scene_masks
from vitdeploy.data.pictures import render_with_masks
from vitdeploy.masks import mask_iou
from vitdeploy.models import LoadOptions, load
from vitdeploy.prompts import best_masks, object_prompts, prompt_feeds

IMAGE_SIZE = 128  # pixels
PATCH = 8
CONFIG = {
    "vision_config": {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "mlp_dim": 384,
        "output_channels": 64,
        "num_pos_feats": 32,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "window_size": 6,
        "global_attn_indexes": [1, 3],
    },
    "prompt_encoder_config": {
        "hidden_size": 64,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
    },
    "mask_decoder_config": {
        "hidden_size": 64,
        "mlp_dim": 128,
        "num_attention_heads": 4,
        "iou_head_hidden_dim": 64,
    },
}
PREPROCESS = Preprocess((IMAGE_SIZE, IMAGE_SIZE), interpolation="bilinear", crop_mode="corner")
TRAINING_SEED = 1  # of the pictures; `calib_data/scenes` has other ones
SIDES = (96, IMAGE_SIZE)  # pixels: shortest and longest edge of a picture
LEAST_PIXELS = 60  # an object of which less is seen is no target
PICTURES = 6000
STEPS = 2000
BATCH = 12
PROMPTS = 4
MATRIX_LEARNING_RATE = 3e-3
OTHER_LEARNING_RATE = 2e-3
WARM_UP = 120  # steps
COOL_DOWN = 0.25  # share of all steps
WEIGHT_DECAY = 0.05
EMA_DECAY = 0.995
BOX_JITTER = 0.05  # of a box's size
THREADS = 1  # the order of floating-point sums, so the result, depends on it


class Scene(NamedTuple):
    """A picture, and what is seen of its larger objects."""

    image: Image.Image
    numbers: np.ndarray
    """(height, width) uint8: 0 is no object, k object k."""
    objects: int
    """How many there are, at least 1."""


class Batch(NamedTuple):
    """Pictures with prompts for some of their objects."""

    pixels: Tensor
    """(B, 3, H, W) float32, normalised."""
    points: Tensor
    """(B, P, 1, 2) x and y in pixels: one point inside each object."""
    boxes: Tensor
    """(B, P, 4) left, top, right and bottom in pixels: around each object, jittered."""
    masks: Tensor
    """(B, P, h, w) float32: 1 inside the object, at the size of low-resolution masks."""


def main() -> None:
    """Train, save in transformers' folder layout, and report mask IoU on the held-out scenes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    home = Path(__file__).resolve().parents[1]
    parser.add_argument("--output", type=Path, default=home / "vitdeploy/models/sam_scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(options.seed)
    trained = train(new_model(), options.steps, options.seed)
    save(trained, options.output)
    for kind, values in held_out_iou(options.output).items():
        sys.stdout.write(
            f"{kind}: mask IoU on the held-out scenes, mean {values.mean():.3f}, "
            f"median {np.median(values):.3f} of {len(values)} objects\n"
        )


def new_model() -> nn.Module:
    """Return the model with its library's initialisation, but for two kinds of parameters."""
    model = SamModel._from_config(SamConfig(**CONFIG), attn_implementation="eager")
    frequencies = model.prompt_encoder.shared_embedding.positional_embedding
    with torch.no_grad():
        # fixed Fourier features: the library draws them far too fine for learning from scratch
        frequencies.normal_(0, 1)
        for name, parameter in model.vision_encoder.named_parameters():
            # the library starts its encoder at practically zero, to be overwritten by weights
            if parameter.ndim > 1 and "rel_pos" not in name:
                nn.init.trunc_normal_(parameter, std=0.02 if "pos_embed" in name else 0.05)
    model.shared_image_embedding.positional_embedding = frequencies
    frequencies.requires_grad_(requires_grad=False)
    return model


def train(model: nn.Module, steps: int, seed: int) -> dict[str, Tensor]:
    """Return the running mean of `model`'s weights over its training, by name."""
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = _optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmth(step, steps))
        for optimizer in optimizers
    ]
    scenes, rng = drawn_scenes(PICTURES, seed), np.random.default_rng(seed)
    model.train()
    for step in range(steps):
        loss = loss_of(model, drawn_batch(scenes, rng))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                mean[name].lerp_(value, 1 - decay)
        if step % 50 == 49:
            sys.stderr.write(f"step {step + 1}/{steps}  loss {loss.item():.3f}\n")
            sys.stderr.flush()
    return mean


def _optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of linear layers, AdamW for everything else."""
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    matrices = [layer.weight for layer in linear]
    known = {id(matrix) for matrix in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    muon = torch.optim.Muon(
        matrices,
        lr=MATRIX_LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, torch.optim.AdamW(others, lr=OTHER_LEARNING_RATE, weight_decay=WEIGHT_DECAY)]


def _warmth(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: up, level, and down to zero."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (COOL_DOWN * steps))


def drawn_scenes(count: int, seed: int) -> list[Scene]:
    """Return `count` rendered pictures in which an object can be pointed at."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    index = 0
    while len(scenes) < count:
        height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
        image, masks = render_with_masks(Picture(TRAINING_SEED, index, height, width))
        seen = masks[masks.sum((1, 2)) >= LEAST_PIXELS]
        if len(seen):
            numbers = np.zeros((height, width), np.uint8)
            for number, mask in enumerate(seen, 1):
                numbers[mask] = number
            scenes.append(Scene(image, numbers, len(seen)))
        index += 1
    return scenes


def drawn_batch(scenes: list[Scene], rng: np.random.Generator) -> Batch:
    """Return some of the scenes, with prompts for `PROMPTS` objects each."""
    rows = [_drawn_sample(scenes[i], rng) for i in rng.integers(len(scenes), size=BATCH)]
    pixels, points, boxes, masks = (np.stack(column) for column in zip(*rows, strict=True))
    return Batch(*(torch.from_numpy(a) for a in (pixels, points, boxes, masks)))


def _drawn_sample(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    image, numbers, objects = scene
    if rng.integers(2):
        image, numbers = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), numbers[:, ::-1]
    if rng.integers(2):
        image, numbers = image.transpose(Image.Transpose.TRANSPOSE), numbers.T
    image = Image.fromarray(np.asarray(image)[..., rng.permutation(3)])
    scale = IMAGE_SIZE / max(image.size)
    chosen = [numbers == number for number in 1 + rng.integers(objects, size=PROMPTS)]
    points, boxes = zip(*(_drawn_prompt(mask, rng) for mask in chosen), strict=True)
    return (
        prepare(image, PREPROCESS),
        np.asarray(points, np.float32)[:, None] * scale,
        np.asarray(boxes, np.float32) * scale,
        np.stack([_low_resolution(mask) for mask in chosen]),
    )


def _drawn_prompt(
    mask: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[float, float], list[float]]:
    """Return a point inside `mask` and a jittered box around it, in pixels of the picture."""
    rows, columns = np.nonzero(mask)
    place = rng.integers(len(rows))
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)
    size = np.tile(box[2:] - box[:2], 2)
    jittered = box + rng.uniform(-BOX_JITTER, BOX_JITTER, 4) * size
    return (float(columns[place]), float(rows[place])), jittered.tolist()


def _low_resolution(mask: np.ndarray) -> np.ndarray:
    """Return (h, w) float32 of 0 and 1: `mask` (H, W) as the decoder's low-resolution masks."""
    side = 4 * IMAGE_SIZE // PATCH
    scale = IMAGE_SIZE / max(mask.shape)
    size = tuple(int(length * scale + 0.5) for length in mask.shape)
    square = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    square.paste(Image.fromarray(mask.astype(np.uint8) * 255).resize(size[::-1]))
    shrunk = square.resize((side, side), Image.Resampling.BOX)
    return (np.asarray(shrunk) > 127).astype(np.float32)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss: the best of three masks for a point, the first mask for a box."""
    embeddings = model.vision_encoder(batch.pixels).last_hidden_state
    labels = torch.ones(batch.points.shape[:3], dtype=torch.int)
    by_point = model(image_embeddings=embeddings, input_points=batch.points, input_labels=labels)
    by_box = model(image_embeddings=embeddings, input_boxes=batch.boxes, multimask_output=False)
    total = torch.zeros(())
    for found in (by_point, by_box):
        target = batch.masks.unsqueeze(2).expand_as(found.pred_masks)
        losses = _mask_loss(found.pred_masks, target)
        quality = functional.mse_loss(found.iou_scores, _iou(found.pred_masks, target))
        total = total + losses.min(dim=2).values.mean() + quality
    return total


def _mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return (B, P, M): focal loss (arXiv 1708.02002), 20 times, and Dice loss, as SAM does."""
    plain = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = (target - logits.sigmoid()).abs()
    focal = (wrong.square() * plain).mean((-2, -1))
    overlap = (logits.sigmoid() * target).sum((-2, -1))
    sizes = logits.sigmoid().sum((-2, -1)) + target.sum((-2, -1))
    return 20 * focal + 1 - (2 * overlap + 1) / (sizes + 1)


def _iou(logits: Tensor, target: Tensor) -> Tensor:
    """Return (B, P, M) without gradient: intersection over union of the masks at logit 0."""
    mask = logits.detach() > 0
    wanted = target > 0.5
    union = (mask | wanted).sum((-2, -1)).clamp(min=1)
    return (mask & wanted).sum((-2, -1)) / union


def save(weights: dict[str, Tensor], folder: Path) -> None:
    """Write config.json and model.safetensors in the layout of transformers' save_pretrained."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "sam", "architectures": ["SamModel"], **CONFIG}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    kept = {n: v.contiguous() for n, v in weights.items() if not n.startswith("shared_image")}
    (folder / "model.safetensors").write_bytes(serialize(kept))


def held_out_iou(folder: Path) -> dict[str, np.ndarray]:
    """Return by kind of prompt the mask IoU of every object of `calib_data/scenes/eval`."""
    encoder, decoder = (part.module for part in load(LoadOptions(str(folder))).parts)
    values: dict[str, list[float]] = {"point": [], "box": []}
    scenes = packaged_set("scenes", "eval")
    for index, path in enumerate(scenes.paths):
        image, known = scenes.open(index), scene_masks(path)
        pixels = torch.from_numpy(prepare(image, PREPROCESS)).unsqueeze(0)
        prompts = [prompt for mask in known for prompt in object_prompts(mask)]
        feeds = prompt_feeds(prompts, known.shape[1:], PREPROCESS, decoder.mask_size)
        with torch.inference_mode():
            arguments = (torch.from_numpy(array) for array in feeds.values())
            masks, quality, _ = (value.numpy() for value in decoder(encoder(pixels), *arguments))
        best = best_masks(quality, feeds["point_labels"])
        for row, choice in enumerate(best):
            found = masks[row, choice] > 0
            values["point" if row % 2 == 0 else "box"].append(mask_iou(known[row // 2], found))
    return {kind: np.asarray(row) for kind, row in values.items()}


if __name__ == "__main__":
    main()
