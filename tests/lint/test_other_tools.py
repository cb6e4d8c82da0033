"""Graphs as other tools write them: ONNX Runtime's quantiser and optimiser, ONNX's own tests."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.onnx_files import fix_batch, write_onnx
from vitdeploy.lint import LintReport, lint_file, lint_model


def broken(report: LintReport, severity: str = "error") -> set[int]:
    """Numbers of the rules with findings of a severity."""
    return {r.number for r in report.results for f in r.findings if f.severity == severity}


@pytest.fixture
def plain_file(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "plain.onnx", lambda proto: fix_batch(proto, 2))


class Images:
    """A calibration reader of ONNX Runtime: two batches."""

    def __init__(self) -> None:
        draws = np.random.default_rng(0).standard_normal((2, 2, 3, 16, 16)).astype(np.float32)
        self.left = list(draws)

    def get_next(self) -> dict[str, Any] | None:
        return {"pixel_values": self.left.pop()} if self.left else None


def quantize(source: Path, **options: Any) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    path = source.with_name("quantized.onnx")
    quantize_static(
        source,
        path,
        Images(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        **options,
    )
    return path


def test_a_float_file_is_clean(plain_file: Path):
    report = lint_file(plain_file)
    assert (report.errors, report.warnings) == (0, 0)


def test_what_onnxruntime_quantizes_by_default_is_not_for_tensorrt(plain_file: Path):
    """Asymmetric activations and int32 biases."""
    assert broken(lint_file(quantize(plain_file))) == {1, 30}


def test_what_onnxruntime_quantizes_symmetrically_is(plain_file: Path):
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    report = lint_file(quantize(plain_file, per_channel=True, extra_options=options))
    assert broken(report) == set()
    # It quantises the stream, norms, biases and outputs too, in FP32.
    assert broken(report, "warning") >= {25, 26, 28}


def test_what_onnxruntime_optimized_is_refused(plain_file: Path, tmp_path: Path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(plain_file, options, providers=["CPUExecutionProvider"])
    assert 9 in broken(lint_file(tmp_path / "optimized.onnx"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # ONNX's cases divide by zero on purpose
def test_onnx_own_tests_are_linted_and_no_supported_operator_is_refused():
    """Some 1900 graphs of one operator, strange ones too, against NVIDIA's parser."""
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    from onnx.backend.test.case.node import collect_testcases

    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    cases = [case for case in collect_testcases(None) if case.model is not None]
    assert len(cases) > 1000
    for case in cases:
        errors = broken(lint_model(ir.from_proto(case.model), "trt-rtx")) - {14, 19}
        if errors and parses(trt, builder, case.model):
            # Their scales and zero points are inputs, which the parser of RTX takes.
            assert errors <= {1, 2, 3, 5}, case.name


def parses(trt: Any, builder: Any, model: onnx.ModelProto) -> bool:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    return bool(parser.parse(model.SerializeToString()))
