"""Token merging beside a lower image size: top-1 and latency on OpenVINO, in one table.

    python benchmarks/merge_tokens.py --model MODEL [--image-size N] [--eval DIR] [--images 2000]
        [--shares 0.2 0.35 0.5] [--blocks 1] [--sizes 28 24 20] [--seconds 10] [--bf16]

MODEL is a model folder, or an alias, which gets random weights: then there is latency only. All
rows are timed in turns in one process; ratios are of median latencies against the whole model.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitdeploy.compress.merge_tokens import merge_tokens
from vitdeploy.data import load_batches, scan_images
from vitdeploy.measure import Subject, measure_latency
from vitdeploy.models import LoadedModel, LoadOptions, load
from vitdeploy.onnx_export import onnx_from_part
from vitdeploy.recipe import MergeTokensSection
from vitdeploy.runner import Runner
from vitdeploy.targets import BuildRequest, load_target

BATCH = 50


@dataclass(frozen=True)
class Row:
    """One way of having fewer tokens."""

    name: str
    loaded: LoadedModel


def main() -> None:
    """Print one line a way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--eval", help="class folders")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.2, 0.35, 0.5])
    parser.add_argument("--blocks", type=int, nargs="*", default=[], help="of the merges")
    parser.add_argument("--sizes", type=int, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    target = load_target("openvino")
    precision = "bf16" if options.bf16 else "fp32"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subjects, scores = [], {}
        for number, row in enumerate(rows(options)):
            part, size = row.loaded.parts[0], row.loaded.spec.preprocess.size[0]
            example = np.random.default_rng(0).standard_normal((2, 3, size, size), "f4")
            graph = onnx_from_part(part, example, "dynamic", target.OPSET)
            place = folder / str(number)
            place.mkdir()
            artifact = target.build(BuildRequest(part.name, graph, precision, place, None))
            runner = stack.enter_context(target.open(artifact))
            subjects.append(Subject(row.name, runner, {part.inputs[0].name: example[:1]}, 1))
            scores[row.name] = top1_percent(row.loaded, runner, options) if options.eval else None
        timings = measure_latency(subjects, options.seconds)
    first = timings[subjects[0].name].p50_ms
    print(f"{'':24}{'p50 ms':>9}{'faster':>9}{'top-1 %':>9}")
    for subject in subjects:
        p50, score = timings[subject.name].p50_ms, scores[subject.name]
        shown = "" if score is None else f"{score:9.2f}"
        print(f"{subject.name:24}{p50:9.2f}{first / p50:8.2f}x{shown}", flush=True)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the whole model, then with merging, then at lower image sizes."""
    is_random = not Path(options.model).is_dir()

    def loaded(size: int | None) -> LoadedModel:
        return load(LoadOptions(options.model, random_weights=is_random, image_size=size))

    whole = loaded(options.image_size)
    yield Row(f"{whole.spec.preprocess.size[0]} pixels", whole)
    for share in options.shares:
        section = MergeTokensSection(share=share, blocks=tuple(options.blocks))
        result = merge_tokens(whole, section)
        counts = "-".join(str(count) for count in result.patches)
        yield Row(f"merge {share:g}: {counts}", result.loaded)
    for size in options.sizes:
        yield Row(f"{size} pixels", loaded(size))


def top1_percent(loaded: LoadedModel, runner: Runner, options: argparse.Namespace) -> float:
    """Return top-1 on 0..100."""
    images = scan_images(options.eval, loaded.spec.label_names).sample(options.images, 0)
    labels, hits = np.asarray(images.labels), 0
    for pixels, indices in load_batches(images, loaded.spec.preprocess, BATCH):
        (logits,) = runner({loaded.parts[0].inputs[0].name: pixels}).values()
        hits += int((logits.argmax(1) == labels[indices]).sum())
    return 100 * hits / len(images)


if __name__ == "__main__":
    main()
