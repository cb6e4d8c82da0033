"""What every target promises, on the same small graph."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.errors import DataError, ExportError, UnsupportedError
from vitdeploy.openvino_core import openvino_core
from vitdeploy.recipe import INT4_PRECISIONS, Int8Section
from vitdeploy.targets import TARGETS, BuildRequest, Target, load_target
from vitdeploy.targets.onnx import runner_from_model

PRECISIONS = [
    (name, precision)
    for name in TARGETS
    for precision in load_target(name).PRECISIONS
    if precision not in INT4_PRECISIONS  # they have tests of their own
]
# FP32 differs by summation order; FP16 has 11 bits and OpenVINO's f16 GELU adds to that (50 dB
# seen); BF16 has 8 bits; INT8 as in compress/test_int8.
LEAST_SQNR_DB = {"fp32": 100.0, "fp16": 45.0, "bf16": 30.0, "int8": 28.0}


def build(name: str, precision: str, model: ir.Model, pixels: np.ndarray, folder: Path):
    target = load_target(name)
    if precision == "int8":
        feeds = [{"pixel_values": pixels}]
        result = quantize_int8(
            model, target.quant_scheme(), lambda: iter(feeds), Int8Section(placement="all")
        )
        model = result.model
    return target.build(BuildRequest("model", model, precision, folder, "0" * 64))


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_all_that_the_protocol_names(name: str):
    """A target is one module: what others ask of it is here, not in lists of names elsewhere."""
    target = load_target(name)
    named = {*Target.__annotations__, *(n for n in vars(Target) if not n.startswith("_"))}
    assert {"IS_PACKAGED", "lint_version", "onnx_graph", "fusion", "layer_times"} <= named
    assert [member for member in sorted(named) if not hasattr(target, member)] == []
    assert name == target.NAME


@pytest.mark.parametrize("name", TARGETS)
def test_an_artefact_says_what_a_device_loads_and_what_can_be_read(
    name: str, vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):
    target = load_target(name)
    artifact = build(name, "fp32", vit_graph, pixels, tmp_path)
    loaded = {"openvino": ("model.xml", "model.bin")}.get(name, (artifact.path.name,))
    assert artifact.run_bytes == sum((tmp_path / file).stat().st_size for file in loaded)
    graph = target.onnx_graph(artifact)
    if graph is not None:
        assert graph in artifact.files
        onnx.checker.check_model(str(graph))
    version = target.lint_version(artifact)
    assert version == {"trt": "10.3", "trt-rtx": "trt-rtx"}.get(name)


@pytest.mark.parametrize(("name", "precision"), PRECISIONS)
def test_artefact_keeps_the_function(
    name: str, precision: str, vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):
    target = load_target(name)
    try:
        target.check_precision(precision)
    except UnsupportedError as error:
        pytest.skip(str(error))
    artifact = build(name, precision, vit_graph, pixels, tmp_path)
    with runner_from_model(vit_graph) as runner:
        expected = runner({"pixel_values": pixels})["logits"].astype(np.float64)
    with target.open(artifact) as runner:
        seen = runner({"pixel_values": pixels})["logits"]
        other_batch = runner({"pixel_values": pixels[:1]})["logits"]
    noise = np.square(expected - seen).sum()
    assert 10 * np.log10(np.square(expected).sum() / max(noise, 1e-30)) > LEAST_SQNR_DB[precision]
    np.testing.assert_allclose(other_batch, seen[:1], rtol=0.02, atol=0.02)
    assert [tensor.name for tensor in artifact.inputs] == ["pixel_values"]
    assert artifact.inputs[0].shape == ("batch", 3, 16, 16)
    assert [tensor.name for tensor in artifact.outputs] == ["logits"]
    assert artifact.bytes == sum(file.stat().st_size for file in artifact.files)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {file.name for file in artifact.files}


@pytest.mark.parametrize("name", TARGETS)
def test_two_builds_give_the_same_bytes(
    name: str, vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):
    digests = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        digests.append(build(name, "fp32", vit_graph, pixels, folder).sha256)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", TARGETS)
def test_no_path_of_the_machine_is_stored(
    name: str, vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):
    artifact = build(name, "int8", vit_graph, pixels, tmp_path)
    for file in artifact.files:
        assert str(tmp_path).encode() not in file.read_bytes()


@pytest.mark.parametrize("name", TARGETS)
def test_refuses_feeds_that_do_not_fit(
    name: str, vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):
    artifact = build(name, "fp32", vit_graph, pixels, tmp_path)
    with load_target(name).open(artifact) as runner, pytest.raises(DataError, match="cannot run"):
        runner({"pixel_values": pixels[:, :2]})


@pytest.mark.parametrize("name", TARGETS)
def test_refuses_a_damaged_file(name: str, vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path):
    artifact = build(name, "fp32", vit_graph, pixels, tmp_path)
    artifact.path.write_bytes(artifact.path.read_bytes()[:200])
    with pytest.raises(ExportError, match=r"cannot (load|compile)"):
        load_target(name).open(artifact)


@pytest.mark.parametrize("name", TARGETS)
def test_refuses_an_unknown_precision(name: str):
    with pytest.raises(UnsupportedError, match="has no precision 'int3'"):
        load_target(name).check_precision("int3")


def test_onnx_refuses_bf16_and_says_where_it_runs():
    with pytest.raises(UnsupportedError, match="--target openvino"):
        load_target("onnx").check_precision("bf16")


def test_refuses_an_unknown_target():
    with pytest.raises(UnsupportedError, match="Did you mean 'openvino'"):
        load_target("openvin")


def test_onnx_artefact_is_a_valid_file(vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path):
    artifact = build("onnx", "int8", vit_graph, pixels, tmp_path)
    onnx.checker.check_model(str(artifact.path), full_check=True)


def test_onnxruntime_runs_the_products_in_int8(
    vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):
    """The optimised graph has integer kernels and no float product with a weight is left."""
    import onnxruntime as ort

    artifact = build("onnx", "int8", vit_graph, pixels, tmp_path)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 2
    assert kinds.count("QLinearConv") == 1
    assert "Conv" not in kinds


def test_openvino_runs_the_products_in_int8(
    vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):

    artifact = build("openvino", "int8", vit_graph, pixels, tmp_path)
    core = openvino_core()
    compiled = core.compile_model(core.read_model(artifact.path), "CPU")
    kinds = [
        op.get_rt_info()["runtimePrecision"].astype(str)
        for op in compiled.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].astype(str) in ("FullyConnected", "Convolution", "MatMul")
    ]
    assert len(kinds) == 4
    assert all(kind in ("u8", "i8") for kind in kinds), kinds
