"""What quantising costs: wall time and peak memory over depth, width and calibration images.

    python benchmarks/quantize_cost.py [--depths 6,12,24] [--widths 192,384,768]
        [--images 32,128,256] [--size 224] [--search-seconds 120]

A ViT of the packaged timm architecture with random weights is quantised in ONNX Runtime's scheme,
each in a process of its own, so that peak memory is its own. The time is that of `quantize_int8`
alone, on synthetic pictures; export and the comparison with FP32 are not in it.
"""

import argparse
import json
import resource
import subprocess
import sys
import time


def main() -> None:
    """Print one row for each combination, or measure one where `--one` says so."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--depths", default="6,12,24")
    parser.add_argument("--widths", default="192,384,768")
    parser.add_argument("--images", default="32,128,256")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--search-seconds", type=float, default=120.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        depth, width, images = (int(part) for part in options.one.split(","))
        print(json.dumps(measure(depth, width, images, options)))
        return
    print(
        f"{'depth':>6}{'width':>7}{'images':>8}{'params M':>10}{'FP32 ms':>9}{'wall s':>8}"
        f"{'search s':>10}{'peak GiB':>10}  left out"
    )
    for depth in options.depths.split(","):
        for width in options.widths.split(","):
            for images in options.images.split(","):
                print(row_of((depth, width, images), options), flush=True)


def row_of(shape: tuple[str, str, str], options: argparse.Namespace) -> str:
    """Return one row, measured in another process."""
    command = [sys.executable, __file__, "--one", ",".join(shape), "--size", str(options.size)]
    command += ["--search-seconds", str(options.search_seconds)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(result.stdout.splitlines()[-1])
    depth, width, images = shape
    return (
        f"{depth:>6}{width:>7}{images:>8}{found['parameters'] / 1e6:10.1f}{found['fp32_ms']:9.1f}"
        f"{found['wall_s']:8.1f}{found['search_s']:10.1f}{found['peak_gib']:10.2f}  "
        f"{'; '.join(found['skipped'])}"
    )


def measure(depth: int, width: int, images: int, options: argparse.Namespace) -> dict[str, object]:
    """Return what quantising one ViT costs in this process."""
    import onnx_ir as ir
    import timm
    import torch

    from vitdeploy.compress.int8 import quantize_int8
    from vitdeploy.data import synthetic_set
    from vitdeploy.graph.canonical import canonicalise_
    from vitdeploy.recipe import Int8Section
    from vitdeploy.targets import load_target
    from vitdeploy.targets.onnx import runner_from_model

    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=options.size,
        depth=depth,
        embed_dim=width,
        num_heads=width // 64,
        num_classes=10,
    ).eval()
    program = torch.onnx.export(
        module,
        (torch.randn(2, 3, options.size, options.size),),
        dynamo=True,
        opset_version=20,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        verbose=False,
    )
    model = ir.from_proto(program.model_proto)
    canonicalise_(model)
    parameters = sum(p.numel() for p in module.parameters())
    del module, program
    pixels = pixels_of(synthetic_set(images, 0), options.size)
    batches = [{"pixel_values": pixels[start : start + 8]} for start in range(0, images, 8)]
    with runner_from_model(model) as runner:
        runner(batches[0])
        start = time.perf_counter()
        runner(batches[0])
        fp32_ms = 1000 * (time.perf_counter() - start) / len(batches[0]["pixel_values"])
    section = Int8Section(search_seconds=options.search_seconds)
    start = time.perf_counter()
    result = quantize_int8(
        model, load_target("onnx").quant_scheme(), lambda: iter(batches), section
    )
    return {
        "parameters": parameters,
        "fp32_ms": fp32_ms,
        "wall_s": time.perf_counter() - start,
        "search_s": result.search.seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "skipped": list(result.search.skipped),
    }


def pixels_of(images: object, size: int) -> object:
    """Return (N, 3, size, size) float32, normalised to -1..1."""
    import numpy as np

    from vitdeploy.data import ImageLoader, Preprocess

    half = (0.5, 0.5, 0.5)
    preprocess = Preprocess(size=(size, size), mean=half, std=half)
    return np.concatenate([p for p, _ in ImageLoader(images, preprocess).batches(8)])


if __name__ == "__main__":
    main()
