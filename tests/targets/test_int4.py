"""INT4 weights on every target: the engine's own kernels, TensorRT's rules, what is refused."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.compress.int4_graph import batches, pictures, small_vit
from vitdeploy.bundle import Artifact
from vitdeploy.compress.int4 import quantize_int4
from vitdeploy.errors import UnsupportedError
from vitdeploy.lint import Known, lint_file
from vitdeploy.recipe import Int4Section
from vitdeploy.targets import TARGETS, BuildRequest, load_target
from vitdeploy.targets.onnx import runner_from_model

EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}
FEEDS = {"pixel_values": pictures(6, 4)}


@pytest.fixture(scope="module")
def graph() -> ir.Model:
    return quantize_int4(small_vit(), batches(32), Int4Section(placement="all")).model


def built(name: str, graph: ir.Model, folder: Path, version: str = "10.15") -> Artifact:
    request = BuildRequest(
        "model", graph, "w4a16", folder, "0" * 64, lambda: iter([FEEDS]), version
    )
    target = load_target(name)
    try:
        target.check_precision("w4a16")
    except UnsupportedError as error:
        pytest.skip(str(error))
    return target.build(request)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_computes_with_the_same_weights(name: str, graph: ir.Model, tmp_path: Path):
    artifact = built(name, graph, tmp_path)
    with runner_from_model(graph, settings=EXACT) as runner:
        expected = runner(FEEDS)["logits"].astype(np.float64)
    with load_target(name).open(artifact) as runner:
        seen = runner(FEEDS)["logits"]
    noise = np.square(seen - expected).sum()
    # BF16 and FP16 between and in the products; INT4's own error would leave 20 to 25 dB
    assert 10 * np.log10(np.square(expected).sum() / max(noise, 1e-30)) > 32


@pytest.mark.parametrize("name", TARGETS)
def test_the_files_are_small(name: str, graph: ir.Model, tmp_path: Path):
    artifact = built(name, graph, tmp_path)
    weights = {"openvino": "model.bin", "trt-rtx": "model.strong.onnx"}.get(name)
    path = tmp_path / weights if weights else artifact.path
    whole = tmp_path / "whole.onnx"
    ir.save(small_vit(), whole)
    # ONNX files hold node names and shapes too, which is a third of so small a model
    assert path.stat().st_size < 0.3 * whole.stat().st_size


def test_scales_are_stored_in_fp16_and_onnxruntimes_numbers_are_the_same(
    graph: ir.Model, tmp_path: Path
):
    artifact = built("onnx", graph, tmp_path)
    constants = onnx.load(artifact.path).graph.initializer
    blocks = [tensor for tensor in constants if tensor.data_type == onnx.TensorProto.INT4]
    halves = [tensor for tensor in constants if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert len(blocks) == len(halves) > 0
    with runner_from_model(graph, settings=EXACT) as runner:
        expected = runner(FEEDS)["logits"]
    with load_target("onnx").open(artifact) as runner:
        np.testing.assert_array_equal(runner(FEEDS)["logits"], expected)


def test_tensorrt_gets_one_strong_graph_that_keeps_its_rules(graph: ir.Model, tmp_path: Path):
    artifact = built("trt", graph, tmp_path)
    graphs = [file.name for file in artifact.files if file.suffix == ".onnx"]
    assert graphs == ["model.strong.onnx"]
    known = Known(frozenset({"pixel_values"}))
    for version in ("10.15", "11.1", "trt-rtx"):
        report = lint_file(artifact.path, version, known)
        assert report.errors == 0
        verdicts = {result.number: result.verdict for result in report.results}
        assert {verdicts[14], verdicts[15], verdicts[29]} == {"pass"}
    old = {r.number: r.verdict for r in lint_file(artifact.path, "10.3", known).results}
    assert (old[14], old[15]) == ("fail", "fail")


def test_tensorrts_scales_are_fp16_and_its_codes_int4(graph: ir.Model, tmp_path: Path):
    artifact = built("trt", graph, tmp_path)
    model = onnx.load(artifact.path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    blocked = [n for n in model.graph.node if any(a.name == "block_size" for a in n.attribute)]
    assert len(blocked) == 8
    for node in blocked:
        assert types[node.input[0]] == onnx.TensorProto.INT4
        assert types[node.input[1]] == onnx.TensorProto.FLOAT16
        assert len(node.input) == 2


@pytest.mark.parametrize("version", ["8.6", "10.3"])
def test_a_tensorrt_without_opset_21_is_refused_by_name(
    version: str, graph: ir.Model, tmp_path: Path
):
    with pytest.raises(UnsupportedError, match=rf"TensorRT {version} reads no INT4.*10\.15"):
        built("trt", graph, tmp_path, version)


@pytest.mark.parametrize("name", ["trt", "trt-rtx"])
def test_tensorrt_has_no_w4a8(name: str):
    with pytest.raises(UnsupportedError, match="multiplies in FP16"):
        load_target(name).check_precision("w4a8")
