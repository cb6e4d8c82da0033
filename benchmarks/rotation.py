"""What fold F2, a rotation that keeps the mean, does to the outlier channels behind LayerNorms.

    python benchmarks/rotation.py --models DIR --cifar10 DIR [--only NAME] [--strength 128]

Models, images and injected outliers are those of `int8_fidelity.py`: as trained, with outlier
channels in every LayerNorm (F1), and with the same off the axes that the model learnt (F2). An
outlier ratio is a LayerNorm's largest channel over its median one, both by their largest magnitude;
shown are the median and the worst over the LayerNorms that a rotation reaches, before and after it,
and how far the rotated model's outputs are from the model's, relative to their RMS.
"""

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import int8_fidelity as fidelity
from vitdeploy.diagnosis.extremes import outlier_ratio
from vitdeploy.graph.folds import rotation
from vitdeploy.recipe import Int8Section
from vitdeploy.targets.onnx import runner_from_model

IMAGES = 64


def main() -> None:
    """Print one row a model and variant."""
    parser = fidelity.subjects_parser(__doc__)
    parser.add_argument("--strength", type=int, default=128, choices=(8, 32, 128, 512))
    parser.set_defaults(images=IMAGES)
    options = parser.parse_args()
    print(
        f"{'model':16}{'variant':12}{'norms':>6}{'median before':>15}{'after':>8}"
        f"{'worst before':>14}{'after':>8}{'off by':>10}"
    )
    for subject in fidelity.subjects(options, Int8Section()):
        variants = fidelity.variants_of(subject.model, seeds=1)
        for name in ("clean", f"F1 s={options.strength}", f"F2 s={options.strength}"):
            model = variants[name]()
            if model is not None:
                print(f"{subject.name:16}{name:12}{row_of(model, subject)}", flush=True)


def row_of(model: ir.Model, subject: fidelity.Subject) -> str:
    """Return the figures of one graph before and after its streams are rotated."""
    rotated = model.clone()
    sites = [s for s in rotation.find(rotated) if rotation.applies(s, allow_inserts=True) is None]
    if not sites:
        return "  no stream that may be rotated"
    for seed, site in enumerate(sites):
        turn = rotation.mean_preserving_rotation(site.channels, seed)
        rotation.apply_(rotated, site, turn, allow_inserts=True)
    reached = {str(reader.norm.name) for site in sites for reader in site.stream.norms}
    pixels = subject.pixels[:IMAGES]
    expected, before = outputs_and_ratios(model, reached, pixels)
    turned, after = outputs_and_ratios(rotated, reached, pixels)
    off = np.abs(turned - expected).max() / np.sqrt(np.square(expected).mean())
    return (
        f"{len(before):6}{np.median(before):15.1f}{np.median(after):8.1f}"
        f"{max(before):14.1f}{max(after):8.1f}{off:10.1e}"
    )


def outputs_and_ratios(
    model: ir.Model, norms: set[str], pixels: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """Return the model's outputs, and the outlier ratio behind each of the LayerNorms."""
    probed = model.clone()
    values = [node.outputs[0] for node in probed.graph if str(node.name) in norms]
    probed.graph.outputs.extend(values)
    largest: dict[str, np.ndarray] = {}
    outputs = []
    with runner_from_model(probed) as runner:
        for start in range(0, len(pixels), 8):
            found = runner({"pixel_values": pixels[start : start + 8]})
            outputs.append(next(iter(found.values())))
            for name in (str(value.name) for value in values):
                size = np.abs(found[name]).reshape(-1, found[name].shape[-1]).max(axis=0)
                largest[name] = np.maximum(largest.get(name, size), size)
    return np.concatenate(outputs), [outlier_ratio(size) for size in largest.values()]


if __name__ == "__main__":
    main()
