"""Top-1 of pruned models before any recovery, by criterion and ranking.

    python benchmarks/pruning.py --model DIR --train DIR --val DIR [--share 0.3333] [--images 1000]

`--model` is a model folder with a classifier; `--train` and `--val` hold class folders. Importance
is found on `--images` training images, top-1 measured on as many of the others. `random` is the
mean of three seeds.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from vitdeploy.compress.prune import PruneInputs, prune_model
from vitdeploy.data import ImageSet, load_batches, scan_images
from vitdeploy.models import LoadedModel, LoadOptions, load
from vitdeploy.recipe import PruneSection

RANDOM_SEEDS = (0, 1, 2)
BATCH = 16


def batches(images: ImageSet, loaded: LoadedModel, *, labelled: bool = True) -> Iterator[tuple]:
    """Yield images and their labels, or None in place of labels."""
    labels = np.asarray(images.labels)
    for pixels, indices in load_batches(images, loaded.spec.preprocess, BATCH):
        yield pixels, labels[indices] if labelled else None


def top1_percent(loaded: LoadedModel, images: ImageSet) -> float:
    """Return top-1 on 0..100."""
    hits = 0
    with torch.no_grad():
        for pixels, labels in batches(images, loaded):
            found = loaded.parts[0].module(torch.from_numpy(pixels)).argmax(1)
            hits += int((found.numpy() == labels).sum())
    return 100 * hits / len(images)


def main() -> None:
    """Print one line a criterion and ranking."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--train", "--val"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--share", type=float, default=1 / 3, help="of heads and MLP channels")
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(LoadOptions(str(arguments.model)))
    names = loaded.spec.label_names
    train = scan_images(arguments.train, names).sample(arguments.images, 0)
    val = scan_images(arguments.val, names).sample(arguments.images, 0)
    print(f"{loaded.spec.name}: {top1_percent(loaded, val):.1f} % before pruning")
    for ranking in ("global", "layer"):
        for name in ("taylor", "gate", "taylor without labels", "magnitude", "random"):
            criterion, _, unlabelled = name.partition(" ")
            section = PruneSection(
                heads=arguments.share, mlp=arguments.share, criterion=criterion, ranking=ranking
            )
            scores = []
            for seed in RANDOM_SEEDS if criterion == "random" else (0,):
                source = lambda on=not unlabelled: batches(train, loaded, labelled=on)  # noqa: E731
                result = prune_model(loaded, section, PruneInputs(source, seed))
                scores.append(top1_percent(result.loaded, val))
            size = f"{result.after.parameters / 1e6:.2f}M, {result.after.gmacs:.4f} GMACs"
            print(f"{ranking:7}{name:24}{np.mean(scores):6.1f} %   {size}", flush=True)


if __name__ == "__main__":
    main()
