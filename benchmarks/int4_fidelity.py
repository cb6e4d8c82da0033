"""INT4 fidelity of vitdeploy on each target, beside rounding to nearest, NNCF and ONNX Runtime.

    python benchmarks/int4_fidelity.py --models DIR --cifar10 DIR [--only NAME] [--images N]

Models and images are those of `int8_fidelity.py`. Three groups of rows: what ships, on its own
engine and with its own settings; then every method with INT4 in the same products and blocks of
64, on float32 activations, so that only the weights differ. `size` is that of the weights against
FP32's. Rounding to nearest has no correction of any kind; NNCF has AWQ, scale estimation and GPTQ.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import int8_fidelity as fidelity
from benchmarks.int8_fidelity import Subject
from vitdeploy.compress.int4 import Int4Result, quantize_int4
from vitdeploy.graph.gemm import matmul_from_gemm_
from vitdeploy.graph.pointwise import matmul_from_pointwise_conv_
from vitdeploy.graph.save import weights_bytes
from vitdeploy.openvino_core import openvino_core
from vitdeploy.recipe import INT4_OPSET, Int4Section, Int8Section
from vitdeploy.targets import BuildRequest, load_target
from vitdeploy.targets.onnx import runner_from_model

FLOAT = {"session.qdq_matmulnbits_accuracy_level": "1"}
SAME = Int4Section(placement="all")
CONTROL = Int4Section(placement="all", rounding="nearest", scales="off")
NNCF_STEPS: dict[str, dict[str, bool]] = {
    "NNCF": {},
    "NNCF AWQ+SE": {"awq": True, "scale_estimation": True},
    "NNCF AWQ+SE+GPTQ": {"awq": True, "scale_estimation": True, "gptq": True},
}
TRT_VERSION = "10.15"


def main() -> None:
    """Parse the arguments, run, print a table and write JSON lines."""
    parser = fidelity.subjects_parser(__doc__)
    parser.add_argument("--methods", default="all", help="comma-separated names or all")
    parser.add_argument("--images", type=int, default=5000, help="evaluation images at most")
    parser.add_argument("--json", type=Path, help="append each row to this file")
    options = parser.parse_args()
    print(f"{'model':16}{'method':24}{'top-1':>8}{'drop':>7}{'agree':>8}{'SQNR':>7}{'size':>8}")
    for subject in fidelity.subjects(options, Int8Section()):
        blocked = replace(subject, model=_in_opset(subject.model))
        for row in rows_of(blocked, options.methods):
            print(
                f"{row['model']:16}{row['method']:24}{row['top1']:8.2f}{row['drop']:7.2f}"
                f"{row['agreement']:8.2f}{row['sqnr_db']:7.1f}{row['size']:8.4f}",
                flush=True,
            )
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def _in_opset(model: ir.Model) -> ir.Model:
    proto = onnx.version_converter.convert_version(ir.to_proto(model), INT4_OPSET)
    return ir.from_proto(proto)


def rows_of(subject: Subject, methods: str) -> Iterator[dict[str, str | float]]:
    """Yield one row a method."""
    with runner_from_model(subject.model) as runner:
        reference = fidelity.first_output(runner, subject.pixels)
    top1_fp32 = 100.0 * float((reference.argmax(1) == subject.labels).mean())
    results = {
        "ships": quantize_int4(subject.model, _batches(subject), Int4Section()),
        "same": quantize_int4(subject.model, _batches(subject), SAME),
    }
    for name, function in METHODS.items():
        if methods != "all" and name not in methods.split(","):
            continue
        try:
            logits, size = function(subject, results)
        except Exception as error:  # noqa: BLE001 - a peer's failure is a result too
            print(f"{subject.name:16}{name:24} failed: {error}", file=sys.stderr)
            continue
        noise = float(np.square((reference - logits).astype(np.float64)).sum())
        signal = float(np.square(reference.astype(np.float64)).sum())
        top1 = 100.0 * float((logits.argmax(1) == subject.labels).mean())
        yield {
            "model": subject.name,
            "method": name,
            "top1": top1,
            "drop": top1_fp32 - top1,
            "agreement": 100.0 * float((logits.argmax(1) == reference.argmax(1)).mean()),
            "sqnr_db": 10.0 * float(np.log10(signal / noise)),
            "size": size / weights_bytes(subject.model),
        }


def _batches(subject: Subject, batch: int = 8) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    data = subject.calibration
    return lambda: ({"pixel_values": data[s : s + batch]} for s in range(0, len(data), batch))


Results = Mapping[str, Int4Result]
Found = tuple[np.ndarray, float]


def shipped(name: str, precision: str) -> Callable[[Subject, Results], Found]:
    """Return vitdeploy's artefact for one target, with its settings, on its own engine."""

    def run(subject: Subject, results: Results) -> Found:
        model, target = results["ships"].model, load_target(name)
        with tempfile.TemporaryDirectory() as folder:
            request = BuildRequest(
                "model",
                model,
                precision,
                Path(folder),
                None,
                images=_batches(subject),
                trt_version=TRT_VERSION,
            )
            with target.open(target.build(request)) as runner:
                return fidelity.first_output(runner, subject.pixels), weights_bytes(model)

    return run


def weights_alone(options: Int4Section | None) -> Callable[[Subject, Results], Found]:
    """Return vitdeploy's weights on float32 activations; those made with SAME where None."""

    def run(subject: Subject, results: Results) -> Found:
        result = results["same"]
        if options is not None:
            result = quantize_int4(subject.model, _batches(subject), options)
        with runner_from_model(result.model, settings=FLOAT) as runner:
            return fidelity.first_output(runner, subject.pixels), weights_bytes(result.model)

    return run


def ort_nbits(symmetric: bool) -> Callable[[Subject, Results], Found]:
    """Return ONNX Runtime's MatMulNBitsQuantizer, its default algorithm, blocks of 64."""

    def run(subject: Subject, results: Results) -> Found:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        model, others = _prepared(subject, results)
        quantizer = MatMulNBitsQuantizer(
            ir.to_proto(model),
            block_size=64,
            is_symmetric=symmetric,
            accuracy_level=1,
            nodes_to_exclude=others,
        )
        quantizer.process()
        quantized = ir.from_proto(quantizer.model.model)
        with runner_from_model(quantized, settings=FLOAT) as runner:
            return fidelity.first_output(runner, subject.pixels), weights_bytes(quantized)

    return run


def nncf(mode: str, steps: Mapping[str, bool]) -> Callable[[Subject, Results], Found]:
    """Return NNCF's `compress_weights` in blocks of 64, on OpenVINO in f32 without INT8."""

    def run(subject: Subject, results: Results) -> Found:
        import nncf as library
        import openvino as ov
        from nncf.quantization.advanced_parameters import GroupSizeFallbackMode

        model, others = _prepared(subject, results)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(ir.to_proto(model), path)
            converted = ov.convert_model(path)
            known = {node.get_friendly_name() for node in converted.get_ops()}
            compressed = library.compress_weights(
                converted,
                mode=library.CompressWeightsMode[mode],
                ratio=1.0,
                group_size=64,
                all_layers=True,
                ignored_scope=library.IgnoredScope(names=[n for n in others if n in known]),
                dataset=library.Dataset([item["pixel_values"] for item in _batches(subject)()]),
                subset_size=len(subject.calibration),
                advanced_parameters=library.AdvancedCompressionParameters(
                    group_size_fallback_mode=GroupSizeFallbackMode.ADJUST,
                    min_adjusted_group_size=16,
                ),
                **steps,
            )
            ov.save_model(compressed, Path(folder) / "int4.xml", compress_to_fp16=False)
            size = (Path(folder) / "int4.bin").stat().st_size
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        engine = openvino_core().compile_model(compressed, "CPU", settings)
        starts = range(0, len(subject.pixels), fidelity.BATCH)
        parts = [np.array(engine(subject.pixels[s : s + fidelity.BATCH])[0]) for s in starts]
        return np.concatenate(parts), size

    return run


def _prepared(subject: Subject, results: Results) -> tuple[ir.Model, list[str]]:
    """Return the FP32 graph with products as MatMul, and those that are not to become INT4."""
    model = subject.model.clone()
    matmul_from_gemm_(model)
    matmul_from_pointwise_conv_(model)
    wanted = set(results["same"].int4)
    products = ("MatMul", "Conv", "Gemm")
    others = [str(n.name) for n in model.graph if n.op_type in products and n.name not in wanted]
    return model, others


METHODS: dict[str, Callable[[Subject, Results], Found]] = {
    "onnx w4a16": shipped("onnx", "w4a16"),
    "onnx w4a8": shipped("onnx", "w4a8"),
    "openvino w4a16": shipped("openvino", "w4a16"),
    "openvino w4a8": shipped("openvino", "w4a8"),
    "trt w4a16": shipped("trt", "w4a16"),
    "same: vitdeploy": weights_alone(None),
    "same: zero points": weights_alone(SAME.model_copy(update={"zero_points": True})),
    "same: no scales": weights_alone(SAME.model_copy(update={"scales": "off"})),
    "same: nearest": weights_alone(CONTROL),
    "ORT nearest symmetric": ort_nbits(symmetric=True),
    "ORT nearest": ort_nbits(symmetric=False),
    **{f"{name} sym": nncf("INT4_SYM", steps) for name, steps in NNCF_STEPS.items()},
    **{f"{name} asym": nncf("INT4_ASYM", steps) for name, steps in NNCF_STEPS.items()},
}


if __name__ == "__main__":
    main()
