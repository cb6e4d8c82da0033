"""Latency of vitdeploy's INT8 and auto beside PyTorch, ONNX Runtime, OpenVINO and NNCF.

    python benchmarks/int8_latency.py --work DIR [--only NAME] [--batch 1 8] [--seconds 60]

Every row of a model is timed in turns in one process, with all cores, on random weights; calibrated
and compared on rendered pictures, others for each, so that all rows see the same kind. DIR keeps
what was built, so that building (slow, any time) and timing (on a quiet machine) can be two runs:
`--seconds 0` builds all but auto, which times itself. Ratios are against vitdeploy's auto at that
batch, with the interval that holds 95 % of 2000 bootstrap resamples of both medians; the cosine is
that of outputs centred over the images, the mean of the worst output.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vitdeploy
from vitdeploy.bundle import load_bundle
from vitdeploy.evaluation import collect_outputs
from vitdeploy.image_sets import choose_sets
from vitdeploy.measure import Subject, measure_latency
from vitdeploy.metrics import centred_cosines
from vitdeploy.models import load
from vitdeploy.models.spec import ExportPart
from vitdeploy.pipeline import load_options
from vitdeploy.recipe import Recipe, recipe_from_dict, recipe_from_yaml
from vitdeploy.report import read_report
from vitdeploy.runner import Feeds, Outputs, Runner, TorchRunner
from vitdeploy.targets import load_target
from vitdeploy.targets.onnx import OrtRunner
from vitdeploy.targets.openvino import HINT, OpenVinoRunner

MODELS = (("vit-base", None), ("swin-tiny", None), ("dinov2-small", 518), ("fastvit-t8", None))
IMAGES = 16
"""That the fidelity is measured on."""
BASE = "vitdeploy auto"


@dataclass(frozen=True)
class Case:
    """One model, its images and the folder with what was built of it."""

    folder: Path
    part: ExportPart
    calibration: np.ndarray
    """(n, 3, H, W) float32."""
    pixels: np.ndarray
    """(n, 3, H, W) float32, others."""


def main() -> None:
    """Build what is missing and print one table a model and batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps what is built")
    parser.add_argument("--only", help="one alias")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, a model and batch")
    parser.add_argument("--samples", type=int, default=64, help="calibration images")
    parser.add_argument("--calib", default="synthetic", help="where they are")
    options = parser.parse_args()
    for name, size in MODELS:
        if options.only in (None, name):
            case = build(name, size, options)
            for batch in options.batch:
                for line in rows_of(case, batch, options.seconds):
                    print(line, flush=True)


def build(name: str, size: int | None, options: argparse.Namespace) -> Case:
    """Return the case, with everything built that is not there yet."""
    folder = options.work / f"{name}-{size or 'own'}"
    recipe = recipe_from_dict(
        {
            "model": {"source": name, "random_weights": True, "image_size": size},
            "precision": "int8",
            "targets": ["onnx", "openvino"],
            "calibration": {"path": options.calib, "samples": options.samples},
            "evaluation": {"path": "synthetic", "samples": 32},
            "measure": {"search_seconds": 20.0},
        }
    )
    loaded = load(load_options(recipe))
    images = choose_sets(recipe, loaded)
    case = Case(
        folder,
        loaded.parts[0],
        images.require_calibration().first(options.samples),
        images.evaluation.first(IMAGES),
    )
    made(folder / "int8", lambda out: vitdeploy.run(recipe, output=out))
    made(plain_file(case), lambda out: write_plain(case, out))
    made(folder / "ort-static.onnx", lambda out: write_ort_static(case, out))
    for smooth in (True, False):
        path = folder / f"nncf-{'default' if smooth else 'plain'}.xml"
        made(path, lambda out, s=smooth: write_nncf(case, out, smooth=s))
    made(folder / "openvino.xml", lambda out: write_openvino(case, out))
    return case


def build_auto(case: Case, batch: int) -> None:
    """Build what auto chooses for one batch size; it times, so only on a quiet machine."""
    recipe = auto_recipe(recipe_from_yaml(case.folder / "int8" / "recipe.yaml"), batch)
    made(case.folder / f"auto-{batch}", lambda out: vitdeploy.run(recipe, output=out))


def auto_recipe(resolved: Recipe, batch: int) -> Recipe:
    """Return the recipe that chooses for one batch size; nothing of it is known before."""
    measure = resolved.measure.model_copy(update={"batch": batch})
    int8 = resolved.int8.model_copy(update={"choices": {}})
    changes = {"precision": "auto", "targets": ("openvino",), "choices": {}}
    return resolved.model_copy(update={**changes, "measure": measure, "int8": int8})


def made(path: Path, make: Callable[[Path], object]) -> None:
    """Make `path` where it is not there, and say how long that took."""
    if path.exists():
        return
    start = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    print(f"made {path.parent.name}/{path.name} in {time.perf_counter() - start:.0f} s", flush=True)


def plain_file(case: Case) -> Path:
    """Return the FP32 ONNX file of the others: PyTorch's own export, without our graph passes."""
    return case.folder / "plain.onnx"


def write_plain(case: Case, path: Path) -> None:
    """Write that file, its batch dynamic."""
    import torch

    torch.onnx.export(
        case.part.module,
        (torch.from_numpy(case.pixels[:2]),),
        path,
        input_names=[tensor.name for tensor in case.part.inputs],
        output_names=[tensor.name for tensor in case.part.outputs],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        dynamo=True,
        opset_version=20,
        external_data=False,
    )


def write_openvino(case: Case, path: Path) -> None:
    """Write the FP32 IR."""
    import openvino as ov

    ov.save_model(ov.convert_model(plain_file(case)), path, compress_to_fp16=False)


def write_nncf(case: Case, path: Path, *, smooth: bool) -> None:
    """Write NNCF's INT8 IR: its default, or without SmoothQuant."""
    import nncf
    import openvino as ov
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
    )

    off = AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
    quantized = nncf.quantize(
        ov.convert_model(plain_file(case)),
        nncf.Dataset([case.calibration[i : i + 1] for i in range(len(case.calibration))]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(case.calibration),
        advanced_parameters=(
            None if smooth else AdvancedQuantizationParameters(smooth_quant_alphas=off)
        ),
    )
    ov.save_model(quantized, path, compress_to_fp16=False)


def write_ort_static(case: Case, path: Path) -> None:
    """Write ONNX Runtime's `quantize_static`: QDQ, per channel, u8 activations, min-max."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            # Its calibrator keeps every activation of every image it is given.
            self.images = iter(case.calibration[:8])

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {case.part.inputs[0].name: image[None]}

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(plain_file(case)), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    prepared.unlink()


class HalfTorchRunner:
    """Runs the module in bfloat16, with float32 at its borders."""

    def __init__(self, part: ExportPart) -> None:
        import torch

        self._torch, self._part = torch, part
        self._module = copy.deepcopy(part.module).to(torch.bfloat16)
        self.engine = f"torch {torch.__version__}"
        self.threads = torch.get_num_threads()

    def __call__(self, feeds: Feeds) -> Outputs:
        """Return the outputs as float32."""
        pixels = self._torch.from_numpy(feeds[self._part.inputs[0].name])
        with self._torch.inference_mode():
            result = self._module(pixels.to(self._torch.bfloat16))
        values = result if isinstance(result, tuple | list) else (result,)
        names = [tensor.name for tensor in self._part.outputs]
        return {n: v.float().numpy() for n, v in zip(names, values, strict=True)}

    def __enter__(self) -> "HalfTorchRunner":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def runners_of(case: Case, batch: int) -> Iterator[tuple[str, Any]]:
    """Yield (name, runner) of every row; NNCF's as OpenVINO runs it by default: bf16 between."""
    folder = case.folder
    yield "torch FP32", TorchRunner(case.part)
    yield "torch BF16", HalfTorchRunner(case.part)
    yield "ORT FP32", OrtRunner(plain_file(case))
    yield "ORT static INT8", OrtRunner(folder / "ort-static.onnx")
    yield "OpenVINO FP32", OpenVinoRunner(folder / "openvino.xml", settings={HINT: "f32"})
    yield "OpenVINO BF16", OpenVinoRunner(folder / "openvino.xml", settings={HINT: "bf16"})
    yield "NNCF default INT8", OpenVinoRunner(folder / "nncf-default.xml")
    yield "NNCF no SmoothQuant", OpenVinoRunner(folder / "nncf-plain.xml")
    for target in ("onnx", "openvino"):
        (artifact,) = load_bundle(folder / "int8").artifacts(target)
        yield f"vitdeploy --int8 {target}", load_target(target).open(artifact)
    (artifact,) = load_bundle(folder / f"auto-{batch}").artifacts("openvino")
    yield BASE, load_target("openvino").open(artifact)


def rows_of(case: Case, batch: int, seconds: float) -> Iterator[str]:
    """Yield the table of one model and batch; nothing without a budget."""
    if seconds == 0:
        return
    build_auto(case, batch)
    name = case.part.inputs[0].name
    feeds = {name: np.resize(case.pixels, (batch, *case.pixels.shape[1:]))}
    reports = [read_report(case.folder / f / "report.json") for f in ("int8", f"auto-{batch}")]
    (artifact,) = load_bundle(case.folder / f"auto-{batch}").artifacts("openvino")
    searched = sum(s.seconds for r in reports for s in r.stages if s.name == "select openvino")
    yield (
        f"\n{case.folder.name}, batch {batch}: auto kept {artifact.precision} "
        f"{dict(artifact.settings)}; {searched:.0f} s of timing candidates"
    )
    with ExitStack() as stack:
        runners: dict[str, Runner] = {
            row: stack.enter_context(runner) for row, runner in runners_of(case, batch)
        }
        outputs = {
            row: collect_outputs(runner, ({name: image[None]} for image in case.pixels))
            for row, runner in runners.items()
        }
        subjects = [Subject(row, runner, feeds, batch) for row, runner in runners.items()]
        timings = measure_latency(subjects, seconds)
    yield f"{'':26}{'p50 ms':>9}{'/ auto':>9}{'95 %':>16}{'cosine':>10}{'samples':>9}"
    for row, timing in timings.items():
        low, high = ratio_interval(timing.samples_ms, timings[BASE].samples_ms)
        yield (
            f"{row:26}{timing.p50_ms:9.2f}{timing.p50_ms / timings[BASE].p50_ms:9.3f}"
            f"{f'{low:.3f}..{high:.3f}':>16}{cosine(outputs['torch FP32'], outputs[row]):10.5f}"
            f"{len(timing.samples_ms):9}"
        )


def cosine(reference: Outputs, value: Outputs) -> float:
    """Return the mean over images of the centred cosine, of the worst output."""
    means = []
    for name, expected in reference.items():
        cosines = centred_cosines(expected, value[name])
        assert cosines is not None
        means.append(float(cosines.mean()))
    return min(means)


def ratio_interval(samples: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Return the interval that holds 95 % of resampled ratios of medians."""
    rng = np.random.default_rng(0)

    def medians(values: np.ndarray) -> np.ndarray:
        drawn = rng.choice(values, (2000, len(values)))
        return np.asarray(np.median(drawn, axis=1))

    low, high = np.percentile(medians(samples) / medians(base), [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
