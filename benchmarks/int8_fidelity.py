"""INT8 fidelity of vitdeploy beside ORT's and NNCF's defaults, clean and with injected outliers.

    python benchmarks/int8_fidelity.py --models DIR --cifar10 DIR [--only NAME] [--quick]

`--models` holds `vit_cifar10`, `swin_cifar10`, `fastvit_cifar10`; `--cifar10` holds `train` and
`val` class folders. `vit-digits` needs neither. Every variant computes the FP32 model's function;
the injected ones hide outliers in it (the inverse of an exact fold). All methods see the same 256
calibration images and are judged on the same evaluation images, each on its own engine: ORT for
the `onnx` and `trt` schemes and for the graphs that ship for TensorRT, OpenVINO in f32 for NNCF and
for the `openvino` scheme.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.data import ImageLoader, ImageSet, packaged_set, scan_images
from vitdeploy.graph.folds import key_shift, layernorm_scale, query_key_scale, rotation, value_scale
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.models import load
from vitdeploy.models.spec import LoadOptions
from vitdeploy.onnx_export import onnx_from_part
from vitdeploy.openvino_core import openvino_core
from vitdeploy.recipe import Int8Section
from vitdeploy.targets import BuildRequest, load_target
from vitdeploy.targets.onnx import OrtRunner, runner_from_model

CALIBRATION_IMAGES = 256
LARGE_PIXELS = 384
"""Side above which peers calibrate on one image at a time."""
BATCH = 20
"""Evaluation images at a time."""
SYMMETRIC = QuantScheme(activation=ir.DataType.INT8, symmetric_activations=True)


@dataclass(frozen=True)
class Subject:
    """A model's FP32 graph and its images."""

    name: str
    model: ir.Model
    calibration: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray
    section: Int8Section
    """How vitdeploy quantises."""


@dataclass(frozen=True)
class Row:
    """One result."""

    model: str
    variant: str
    method: str
    top1_fp32: float
    top1: float
    agreement: float
    sqnr_db: float
    int8_macs_percent: float | None = None


def main() -> None:
    """Parse the arguments, run, print a table and write JSON lines."""
    parser = subjects_parser(__doc__)
    parser.add_argument("--variants", default="all", help="comma-separated names, clean, or all")
    parser.add_argument("--methods", default="all", help="comma-separated names or all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--search-seconds",
        type=float,
        default=Int8Section().search_seconds,
        help="vitdeploy's budget; more where the machine is busy",
    )
    parser.add_argument("--images", type=int, default=5000, help="evaluation images at most")
    parser.add_argument("--json", type=Path, help="append each row to this file")
    options = parser.parse_args()
    print(f"{'model':16}{'variant':18}{'method':22}{'top-1':>8}{'drop':>7}{'agree':>8}{'SQNR':>7}")
    section = Int8Section(search_seconds=options.search_seconds)
    for subject in subjects(options, section):
        variants = variants_of(subject.model, options.seeds)
        for variant, make in variants.items():
            if options.variants != "all" and variant not in options.variants.split(","):
                continue
            model = make()
            if model is None:
                continue
            for row in rows_of(subject, variant, model, options.methods):
                print(
                    f"{row.model:16}{row.variant:18}{row.method:22}{row.top1:8.2f}"
                    f"{row.top1_fp32 - row.top1:7.2f}{row.agreement:8.2f}{row.sqnr_db:7.1f}",
                    flush=True,
                )
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps(row.__dict__) + "\n")


def subjects_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that say which models `subjects` yields."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--only", action="append", help="model name; repeatable")
    parser.add_argument("--draw", type=int, default=0, help="seed of which images calibrate")
    return parser


def subjects(options: argparse.Namespace, section: Int8Section) -> Iterator[Subject]:
    """Yield the models asked for, each with its images in memory."""
    names = ["vit-digits"]
    if options.models and options.cifar10:
        names += ["vit_cifar10", "swin_cifar10", "fastvit_cifar10"]
    for name in names:
        if options.only and name not in options.only:
            continue
        if name == "vit-digits":
            source = name
            sets = packaged_set("digits", "calib"), packaged_set("digits", "eval")
        else:
            source = str(options.models / name)
            classes = tuple(sorted(path.name for path in (options.cifar10 / "val").iterdir()))
            sets = tuple(scan_images(options.cifar10 / part, classes) for part in ("train", "val"))
        loaded = load(LoadOptions(source))
        preprocess = loaded.spec.preprocess
        calibration = _pixels(sets[0].sample(CALIBRATION_IMAGES, options.draw), preprocess)
        chosen = sets[1].sample(min(options.images, len(sets[1])), 0)
        pixels = _pixels(chosen, preprocess)
        model = onnx_from_part(loaded.parts[0], calibration[:3], "dynamic", 20)
        yield Subject(name, model, calibration, pixels, np.asarray(chosen.labels), section)


def _pixels(images: ImageSet, preprocess: object) -> np.ndarray:
    return np.concatenate([p for p, _ in ImageLoader(images, preprocess).batches(64)])


def variants_of(model: ir.Model, seeds: int) -> dict[str, Callable[[], ir.Model | None]]:
    """Return by name a function that makes the graph: clean, and outliers of every kind."""
    variants: dict[str, Callable[[], ir.Model | None]] = {"clean": model.clone}
    for seed in range(seeds):
        suffix = f"/{seed}" if seed else ""
        for kind, inject in INJECTIONS.items():
            for strength in (8, 32, 128, 512):

                def make(
                    inject: Callable[..., bool] = inject, strength: int = strength, seed: int = seed
                ) -> ir.Model | None:
                    copy = model.clone()
                    rng = np.random.default_rng(seed)
                    return copy if inject(copy, float(strength), rng) else None

                variants[f"{kind} s={strength}{suffix}"] = make
    return variants


def _some_channels(rng: np.random.Generator, channels: int, strength: float) -> np.ndarray:
    """Return (channels,) factors: `strength` on one to four channels, one elsewhere."""
    factors = np.ones(channels)
    factors[rng.choice(channels, int(rng.integers(1, 5)), replace=False)] = strength
    return factors


def inject_f1_(model: ir.Model, strength: float, rng: np.random.Generator) -> bool:
    """Channels of every LayerNorm grow by `strength`."""
    sites = [s for s in layernorm_scale.find(model) if layernorm_scale.applies(s) is None]
    for site in sites:
        layernorm_scale.apply_(model, site, 1 / _some_channels(rng, site.channels, strength))
    return bool(sites)


def inject_f2_(model: ir.Model, strength: float, rng: np.random.Generator) -> bool:
    """F1's outliers on a stream that was rotated before: off the axes the model learnt."""
    sites = [s for s in rotation.find(model) if rotation.applies(s, allow_inserts=True) is None]
    for site in sites:
        turn = rotation.mean_preserving_rotation(site.channels, int(rng.integers(1 << 30)))
        rotation.apply_(model, site, turn, allow_inserts=True)
    return bool(sites) and inject_f1_(model, strength, rng)


def inject_f3_(model: ir.Model, strength: float, rng: np.random.Generator) -> bool:
    """Key channels grow by `strength`, query channels shrink."""
    sites = [s for s in query_key_scale.find(model) if query_key_scale.applies(s) is None]
    for site in sites:
        heads, size = site.attention.num_heads, site.attention.head_dim
        factors = np.stack([_some_channels(rng, size, strength) for _ in range(heads)])
        query_key_scale.apply_(model, site, factors)
    return bool(sites)


def inject_f4_(model: ir.Model, strength: float, rng: np.random.Generator) -> bool:
    """Key channels are shifted by `strength` / 2: bimodal keys."""
    sites = [s for s in key_shift.find(model) if key_shift.applies(s) is None]
    for site in sites:
        heads, size = site.attention.num_heads, site.attention.head_dim
        shift = rng.choice((-0.5, 0.0, 0.5), (heads, size)) * strength
        key_shift.apply_(model, site, shift)
    return bool(sites)


def inject_f5_(model: ir.Model, strength: float, rng: np.random.Generator) -> bool:
    """Value channels grow by `strength`."""
    sites = [s for s in value_scale.find(model) if value_scale.applies(s) is None]
    for site in sites:
        heads, size = site.attention.num_heads, site.attention.head_dim
        factors = np.stack([1 / _some_channels(rng, size, strength) for _ in range(heads)])
        value_scale.apply_(model, site, factors)
    return bool(sites)


INJECTIONS = {
    "F1": inject_f1_,
    "F2": inject_f2_,
    "F3": inject_f3_,
    "F4": inject_f4_,
    "F5": inject_f5_,
}


def rows_of(subject: Subject, variant: str, model: ir.Model, methods: str) -> Iterator[Row]:
    """Yield one row per method."""
    reference = _run_ort(model, subject.pixels)
    top1_fp32 = 100.0 * float((reference.argmax(1) == subject.labels).mean())
    for method, function in METHODS.items():
        if methods != "all" and method not in methods.split(","):
            continue
        try:
            logits, share = function(model, subject)
        except Exception as error:  # noqa: BLE001 - a peer's failure is a result too
            print(f"{subject.name:16}{variant:18}{method:22} failed: {error}", file=sys.stderr)
            continue
        noise = np.square((reference - logits).astype(np.float64)).sum()
        signal = np.square(reference.astype(np.float64)).sum()
        yield Row(
            subject.name,
            variant,
            method,
            top1_fp32,
            100.0 * float((logits.argmax(1) == subject.labels).mean()),
            100.0 * float((logits.argmax(1) == reference.argmax(1)).mean()),
            10.0 * float(np.log10(signal / noise)),
            share,
        )


def _run_ort(model: ir.Model, pixels: np.ndarray) -> np.ndarray:
    with runner_from_model(model) as runner:
        return first_output(runner, pixels)


def first_output(runner: OrtRunner, pixels: np.ndarray, batch: int = BATCH) -> np.ndarray:
    """Return the model's first output on all images."""
    parts = [runner({"pixel_values": pixels[s : s + batch]}) for s in range(0, len(pixels), batch)]
    return np.concatenate([next(iter(part.values())) for part in parts])


def _batches(subject: Subject, batch: int = 8) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    data = subject.calibration
    return lambda: ({"pixel_values": data[s : s + batch]} for s in range(0, len(data), batch))


def ours(scheme: QuantScheme) -> Callable[[ir.Model, Subject], tuple[np.ndarray, float]]:
    """Return vitdeploy's quantiser in `scheme`, run by ONNX Runtime."""

    def run(model: ir.Model, subject: Subject) -> tuple[np.ndarray, float]:
        result = quantize_int8(model, scheme, _batches(subject), subject.section)
        return _run_ort(result.model, subject.pixels), result.int8_macs_percent

    return run


def ours_openvino(model: ir.Model, subject: Subject) -> tuple[np.ndarray, float]:
    """Run vitdeploy's quantiser in OpenVINO's scheme, on OpenVINO with its float layers in f32."""
    scheme = load_target("openvino").quant_scheme()
    result = quantize_int8(model, scheme, _batches(subject), subject.section)
    return _run_openvino(_openvino_from(result.model), subject.pixels), result.int8_macs_percent


def ours_tensorrt(kind: str) -> Callable[[ir.Model, Subject], tuple[np.ndarray, float]]:
    """Return what ships for TensorRT, INT8 attention and FP16 layers included, run by ORT.

    Args:
        kind: `strong`, FP16 between the Q/DQ, for TensorRT 10 and newer; or `weak`, FP32.
    """

    def run(model: ir.Model, subject: Subject) -> tuple[np.ndarray, float]:
        target = load_target("trt")
        result = quantize_int8(model, target.quant_scheme(), _batches(subject), subject.section)
        with tempfile.TemporaryDirectory() as folder:
            request = BuildRequest(
                "model", result.model, "int8", Path(folder), None, images=_batches(subject)
            )
            artifact = target.build(request)
            # the file that a bundle's check runs, where no TensorRT is here
            path = artifact.path.with_name(f"model.{kind}.onnx")
            with OrtRunner(path) as runner:
                return first_output(runner, subject.pixels), result.int8_macs_percent

    return run


def ort_static(symmetric: bool) -> Callable[[ir.Model, Subject], tuple[np.ndarray, None]]:
    """Return ORT's `quantize_static`, QDQ, per channel, min-max, all its default operators."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    def run(model: ir.Model, subject: Subject) -> tuple[np.ndarray, None]:
        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                # ORT keeps what all its reductions read: 8 images of 518 pixels take 23 GB
                is_large = subject.calibration.shape[-1] > LARGE_PIXELS
                self.batches = _batches(subject, 1 if is_large else 8)()

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.batches, None)

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(ir.to_proto(model), path)
            quant_pre_process(str(path), str(path), skip_symbolic_shape=True)
            options = {"ActivationSymmetric": symmetric, "WeightSymmetric": True}
            quantize_static(
                str(path),
                str(Path(folder) / "int8.onnx"),
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                extra_options=options,
            )
            quantized = ir.from_proto(onnx.load(Path(folder) / "int8.onnx"))
        return _run_ort(quantized, subject.pixels), None

    return run


def nncf(smooth: bool) -> Callable[[ir.Model, Subject], tuple[np.ndarray, None]]:
    """Return NNCF's `quantize` with `model_type=TRANSFORMER`, on OpenVINO in f32."""

    def run(model: ir.Model, subject: Subject) -> tuple[np.ndarray, None]:
        import nncf as library
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            AdvancedSmoothQuantParameters,
        )

        advanced = None
        if not smooth:
            off = AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
            advanced = AdvancedQuantizationParameters(smooth_quant_alphas=off)
        data = [item["pixel_values"] for item in _batches(subject, 1)()]
        quantized = library.quantize(
            _openvino_from(model),
            library.Dataset(data),
            model_type=library.ModelType.TRANSFORMER,
            subset_size=len(data),
            advanced_parameters=advanced,
        )
        return _run_openvino(quantized, subject.pixels), None

    return run


def _openvino_from(model: ir.Model) -> object:
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(ir.to_proto(model), path)
        return ov.convert_model(path)


def _run_openvino(model: object, pixels: np.ndarray) -> np.ndarray:

    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    starts = range(0, len(pixels), BATCH)
    return np.concatenate([np.array(compiled(pixels[s : s + BATCH])[0]) for s in starts])


METHODS: dict[str, Callable[[ir.Model, Subject], tuple[np.ndarray, float | None]]] = {
    "vitdeploy onnx": ours(load_target("onnx").quant_scheme()),
    "vitdeploy openvino": ours_openvino,
    "vitdeploy trt scheme": ours(SYMMETRIC),
    "vitdeploy trt": ours_tensorrt("strong"),
    "vitdeploy trt weak": ours_tensorrt("weak"),
    "ORT u8s8": ort_static(symmetric=False),
    "ORT s8s8": ort_static(symmetric=True),
    "NNCF default": nncf(smooth=True),
    "NNCF no SmoothQuant": nncf(smooth=False),
}


if __name__ == "__main__":
    main()
