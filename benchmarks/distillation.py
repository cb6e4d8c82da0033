"""Figures of distillation: recovery of pruned models, ways to teach, the whole chain, throughput.

    python benchmarks/distillation.py recover    --model DIR --train DIR --val DIR --output DIR
    python benchmarks/distillation.py methods    --model DIR --train DIR --val DIR --output DIR
    python benchmarks/distillation.py chain      --model DIR --train DIR --val DIR --output DIR
    python benchmarks/distillation.py throughput --model DIR --train DIR --val DIR --output DIR

`--model` is a model folder with a classifier (of `methods`: the teacher); `--train` and `--val`
hold class folders. Everything is written below `--output`, and what was broken off goes on when
the command is given again. Figures are of the machine it runs on; `--epochs` sets the budget.

`recover`: a third of heads and MLP channels goes, the whole model teaches what is left.
`methods`: a small DeiT from scratch (at most a third of the teacher's parameters), the same epochs
and seed without a teacher, soft, hard with the distillation token, and soft with features; the
best one then in INT8. `chain`: prune, distil, INT8, ONNX and OpenVINO in one recipe.
`throughput`: images per second of the loop against a bare loop on the same model and pictures,
and of two processes against one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.optim import create_optimizer_v2

import vitdeploy
from vitdeploy.allocator import keep_freed_memory
from vitdeploy.compress.distill.checkpoints import folder_of
from vitdeploy.compress.distill.epochs import Share, Timetable
from vitdeploy.compress.distill.pictures import Pictures, batches_of, training_transform
from vitdeploy.console import ConsoleProgress
from vitdeploy.data import scan_images
from vitdeploy.distilling import TRAINING_REPORT, distill
from vitdeploy.models import LoadOptions, load
from vitdeploy.pruning import prune
from vitdeploy.recipe import AugmentSection, recipe_from_dict

THIRD = {"heads": 1 / 3, "mlp": 1 / 3, "samples": 512}
RECOVERY = {
    "alpha": 0.8,
    "tau": 2.0,
    "augment": {"crop_scale": (0.7, 1.0)},
    "training": {"batch_size": 128, "lr": 5e-4, "warmup_epochs": 0.1, "clip_grad": 1.0},
}
METHODS: dict[str, dict[str, Any]] = {
    "no teacher": {"loss": "none"},
    "soft": {"loss": "soft", "alpha": 0.8, "tau": 2.0},
    "hard, token": {"loss": "hard", "alpha": 0.5},
    "soft, features": {"loss": "soft", "alpha": 0.8, "tau": 2.0, "features": 1.0},
}
SMALL_DEIT = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 5, "num_heads": 3}


def trained(arguments: argparse.Namespace, name: str, section: dict[str, Any]) -> dict[str, Any]:
    """Return the report of a training, which goes on where it was broken off."""
    folder = arguments.output / name.replace(", ", "-").replace(" ", "-")
    if (folder / TRAINING_REPORT).is_file():
        return dict(json.loads((folder / TRAINING_REPORT).read_text()))
    images = {"path": str(arguments.train), "eval_path": str(arguments.val)}
    with ConsoleProgress() as progress:
        return distill(
            str(arguments.model),
            folder,
            resume=folder_of(folder.resolve()).exists(),
            progress=progress,
            distill={**section, **images},
        ).to_dict()


def recover(arguments: argparse.Namespace) -> None:
    """Print top-1 of the whole model, of the pruned one, and after self-distillation."""
    pruned = arguments.output / "pruned"
    if not pruned.exists():
        prune(str(arguments.model), pruned, prune={**THIRD, "path": str(arguments.train)})
    teachers = [{"source": str(arguments.model)}]
    training = {**RECOVERY["training"], "epochs": arguments.epochs, "checkpoint_steps": 50}
    section = {**RECOVERY, "student": {"source": str(pruned)}, "teachers": teachers}
    report = trained(arguments, "recovered", {**section, "training": training})
    print(
        f"{arguments.model.name}: {report['top1_teachers'][0]:.2f} % whole, "
        f"{report['top1_before']:.2f} % pruned, {report['top1']:.2f} % after "
        f"{report['seconds'] / 60:.1f} minutes"
    )


def methods(arguments: argparse.Namespace) -> None:
    """Print top-1 of one student taught in four ways, and the best one's in INT8."""
    student = {
        "source": "timm:deit_tiny_distilled_patch16_224",
        "arguments": SMALL_DEIT,
        "initialise": "scratch",
        "image_size": 32,
    }
    training = {
        "epochs": arguments.epochs,
        "batch_size": 64,
        "lr": 1e-3,
        "warmup_epochs": 0.5,
        "clip_grad": 1.0,
        "checkpoint_steps": 100,
    }
    found = {}
    for name, section in METHODS.items():
        teacher = {"source": str(arguments.model), "resize": True}
        more = {
            "student": student,
            "teachers": [] if section["loss"] == "none" else [teacher],
            "augment": {"crop_scale": (0.5, 1.0)},
            "training": training,
        }
        found[name] = trained(arguments, name, {**section, **more})["top1"]
        print(f"{name:16}{found[name]:6.2f} %", flush=True)
    best = max(found, key=lambda name: found[name])
    report = exported(arguments, arguments.output / best.replace(", ", "-").replace(" ", "-"))
    rows = [row for row in report.fidelity if row.metric == "top1"]
    print(f"{best}, INT8: " + ", ".join(f"{row.target} {row.value:.2f} %" for row in rows))


def exported(arguments: argparse.Namespace, model: Path) -> Any:
    """Return the report of a model folder in INT8."""
    data = {
        "model": {"source": str(model)},
        "precision": "int8",
        "targets": ["onnx", "openvino"],
        "calibration": {"path": str(arguments.train)},
        "evaluation": {"path": str(arguments.val)},
    }
    return vitdeploy.run(recipe_from_dict(data), output=arguments.output / "int8", force=True)


def chain(arguments: argparse.Namespace) -> None:
    """Print size, top-1 and latency of prune, distil and INT8 against the FP32 model."""
    training = {**RECOVERY["training"], "epochs": arguments.epochs, "checkpoint_steps": 50}
    images = {"path": str(arguments.train), "eval_path": str(arguments.val)}
    data = {
        "model": {"source": str(arguments.model)},
        "precision": "int8",
        "targets": ["onnx", "openvino"],
        "calibration": {"path": str(arguments.train)},
        "evaluation": {"path": str(arguments.val)},
        "prune": {**THIRD, "path": str(arguments.train)},
        "distill": {**RECOVERY, **images, "training": training},
        # Size is the goal here: no small product stays in float for its noise.
        "int8": {"placement": "all"},
    }
    with ConsoleProgress() as progress:
        report = vitdeploy.run(
            recipe_from_dict(data), output=arguments.output / "chain", progress=progress
        )
    whole = report.size_bytes["reference"]
    for row in report.fidelity:
        if row.metric == "top1":
            smaller = whole / report.size_bytes[row.target]
            speedup = report.speedup[row.target]
            print(
                f"{row.target}: {row.value:.2f} % of {row.reference:.2f} %, {smaller:.2f}x "
                f"smaller, {speedup:.2f}x faster"
            )


def throughput(arguments: argparse.Namespace) -> None:
    """Print images per second: a bare loop and this one in turns, then two processes."""
    torch.set_num_threads(1)
    keep_freed_memory()
    names = load(LoadOptions(str(arguments.model))).spec.label_names
    few = arguments.output / "few.csv"
    images = scan_images(arguments.train, names).sample(64 * 60, 0)
    rows = zip(images.paths, images.labels or (), strict=True)
    few.write_text("".join(f"{path.resolve()},{names[label]}\n" for path, label in rows))
    speeds: dict[str, list[float]] = {"bare": [], "vitdeploy": []}
    for _ in range(3):
        speeds["bare"].append(bare_speed(arguments, few))
        speeds["vitdeploy"].append(command_speed(arguments, few, 1))
        print({name: [round(value, 1) for value in row] for name, row in speeds.items()})
    best = {name: max(row) for name, row in speeds.items()}
    print(f"vitdeploy / bare loop: {best['vitdeploy'] / best['bare']:.3f}")
    print(f"two processes / one: {command_speed(arguments, few, 2) / best['vitdeploy']:.2f}")


def bare_speed(arguments: argparse.Namespace, few: Path) -> float:
    """Return images per second of an epoch of torch alone, with the same pictures and batches."""
    loaded = load(LoadOptions(str(arguments.model)))
    images = scan_images(few, loaded.spec.label_names)
    transform = training_transform(AugmentSection(), loaded.spec.preprocess)
    model = loaded.parts[0].module.train()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-5, weight_decay=0.05)
    looks = Timetable(len(images), 64, 1, 1, 1, 0, Share()).epoch(0)
    data = Bare(images, transform)
    begun = time.perf_counter()
    for pixels, labels in batches_of(data, [[index for index, _ in b] for b in looks], 0):
        loss = torch.nn.functional.cross_entropy(model(pixels), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return len(looks) * 64 / (time.perf_counter() - begun)


class Bare(Pictures):
    """Pictures as torchvision's ImageFolder gives them: no seed of their own."""

    def __init__(self, images: Any, transform: Any) -> None:
        super().__init__(images, transform, 0)

    def __getitem__(self, index: Any) -> Any:
        labels = self.images.labels or ()
        return self.transform(self.images.open(index)), labels[index]


def command_speed(arguments: argparse.Namespace, few: Path, processes: int) -> float:
    """Return images per second of an epoch of `vitdeploy distill` on labels alone."""
    data = {
        "model": {"source": str(arguments.model)},
        "distill": {
            "path": str(few),
            "loss": "none",
            "training": {"epochs": 1, "batch_size": 64, "lr": 1e-5},
        },
    }
    recipe = arguments.output / "throughput.yaml"
    recipe.write_text(yaml.safe_dump(data))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    start = [sys.executable, *(launch if processes > 1 else []), "-m", "vitdeploy", "distill"]
    folder = arguments.output / "throughput"
    done = subprocess.run(
        [*start, str(recipe), "-o", str(folder), "--force", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(json.loads(done.stdout)["metrics"][-1]["images_per_second"])


def main() -> None:
    """Run the figure that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = {f.__name__: f for f in (recover, methods, chain, throughput)}
    parser.add_argument("figure", choices=figures)
    for name in ("--model", "--train", "--val", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    figures[arguments.figure](arguments)


if __name__ == "__main__":
    main()
