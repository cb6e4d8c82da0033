"""The TensorRT targets: graphs by version, their types, and what NVIDIA's builder says of them.

Engines run on a GPU only: what is marked `gpu` has been run on no machine yet.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.exactness import canonical
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.errors import ExportError, UnsupportedError, UsageError
from vitdeploy.recipe import Int8Section
from vitdeploy.targets import BuildRequest, load_target
from vitdeploy.targets.tensorrt_graphs import quant_scheme

FAST = Int8Section(placement="all", folds="off", clip="minmax", rounding="nearest")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
SAME_TYPES = ("MatMul", "Gemm", "Conv", "Add", "Mul", "Sub", "Div", "LayerNormalization", "Concat")


def feeds_of(model: ir.Model) -> dict[str, np.ndarray]:
    shape = [2, *model.graph.inputs[0].shape[1:]]
    return {"pixel_values": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


SCHEME = replace(quant_scheme(), attention_noise_floor=1.0)
"""Random models are noisy; here the question is what fuses."""


def request_for(family: str, precision: str, folder: Path, version: str = "10.3") -> BuildRequest:
    model = canonical(family)
    feeds = feeds_of(model)
    if precision == "int8":
        model = quantize_int8(model, SCHEME, lambda: iter([feeds]), FAST).model
    return BuildRequest(
        "model", model, precision, folder, None, lambda: iter([feeds]), trt_version=version
    )


@pytest.mark.parametrize(
    ("version", "precision", "names"),
    [
        ("8.6", "int8", {"weak"}),
        ("10.3", "fp32", {"weak"}),
        ("10.3", "fp16", {"strong", "weak"}),
        ("10.15", "int8", {"strong", "weak"}),
        ("11", "int8", {"strong"}),
        ("11", "fp32", {"strong"}),
    ],
)
def test_each_version_gets_the_graphs_it_takes(
    version: str, precision: str, names: set[str], tmp_path: Path
):
    artifact = load_target("trt").build(request_for("vit", precision, tmp_path, version))
    graphs = [file for file in artifact.files if file.suffix == ".onnx"]
    assert {file.name for file in graphs} == {f"model.{name}.onnx" for name in names}
    assert artifact.settings["trt_version"] == version
    for file in graphs:
        assert ir.load(file).opset_imports[""] == (17 if version == "8.6" else 20)


def test_every_operator_of_the_strong_graph_reads_one_type(tmp_path: Path):
    load_target("trt").build(request_for("vit", "int8", tmp_path))
    model = ir.load(tmp_path / "model.strong.onnx")
    for node in model.graph:
        types = {v.dtype for v in node.inputs if v is not None and v.dtype in FLOATS}
        if node.op_type in SAME_TYPES:
            assert len(types) <= 1, node.name  # a Concat of shapes has none
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert types == {ir.DataType.FLOAT}, node.name
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert node.inputs[1].dtype == ir.DataType.FLOAT16, node.name
            assert not node.inputs[2].const_value.numpy().any()
    values = (*model.graph.inputs, *model.graph.outputs)
    assert {value.dtype for value in values} == {ir.DataType.FLOAT}


def test_strong_and_weak_hold_the_same_quantisation(tmp_path: Path):
    load_target("trt").build(request_for("vit", "int8", tmp_path))
    strong, weak = (
        ir.load(tmp_path / f"model.{kind}.onnx").graph.initializers for kind in ("strong", "weak")
    )
    scales = [name for name in weak if name.endswith("_scale")]
    assert scales
    for name in scales:
        np.testing.assert_array_equal(
            strong[name].const_value.numpy(), weak[name].const_value.numpy()
        )
    for name in (name for name in weak if name.endswith("_quantized")):
        np.testing.assert_array_equal(
            strong[name].const_value.numpy(), weak[name].const_value.numpy()
        )


def test_what_stands_in_says_so_and_is_not_timed(tmp_path: Path):
    target = load_target("trt")
    if target.untimed_reason() is None:
        pytest.skip("TensorRT and a GPU are here, so nothing stands in")
    artifact = target.build(request_for("vit", "fp16", tmp_path))
    with target.open(artifact) as runner:
        assert runner.engine.endswith("(TensorRT's graph; the engine is built on the device)")
    assert target.untimed_reason() in (
        "no TensorRT on this machine",
        "no NVIDIA GPU on this machine",
    )


@pytest.mark.parametrize("version", ["9.2", "7", "new"])
def test_refuses_an_unknown_version(version: str, tmp_path: Path):
    with pytest.raises(UsageError, match=r"8\.6, 10\.MINOR, 11\.MINOR"):
        load_target("trt").build(request_for("vit", "fp32", tmp_path, version))


def test_refuses_an_opset_that_the_version_does_not_take(vit_graph: ir.Model, tmp_path: Path):
    vit_graph.opset_imports[""] = 23
    request = BuildRequest("model", vit_graph, "fp32", tmp_path, None)
    with pytest.raises(ExportError, match=r"--opset 20; TensorRT 10\.15 takes 23"):
        load_target("trt").build(request)
    assert not list(tmp_path.iterdir())


def test_refuses_int8_below_opset_19(vit_graph: ir.Model, tmp_path: Path):
    vit_graph.opset_imports[""] = 18
    request = BuildRequest("model", vit_graph, "int8", tmp_path, None)
    with pytest.raises(ExportError, match="FP16 scales of Q/DQ came with opset 19"):
        load_target("trt").build(request)


@pytest.mark.parametrize("name", ["trt", "trt-rtx"])
def test_refuses_bf16_and_says_what_to_use(name: str):
    with pytest.raises(UnsupportedError, match="--fp16"):
        load_target(name).check_precision("bf16")


def test_rtx_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'vitdeploy\[rtx\]'"):
        load_target("trt-rtx").check_precision("int8")


class TestBuilder:
    """On NVIDIA's own parser and builder, which need no GPU."""

    @pytest.fixture(autouse=True)
    def builder(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx")

    def fusion(self, family: str, precision: str, folder: Path) -> dict:
        artifact = load_target("trt-rtx").build(request_for(family, precision, folder))
        assert artifact.path.name == "model.engine"
        assert artifact.settings["compute_capabilities"] == "8.0, 8.6, 8.9, 12.0, 12.1"
        return json.loads((folder / "model.fusion.json").read_text())

    @pytest.mark.parametrize("family", ["vit", "hf_dinov2"])
    def test_int8_products_and_attention_fuse(self, family: str, tmp_path: Path):
        seen = self.fusion(family, "int8", tmp_path)
        assert seen["quantized_products"] == seen["int8_products"] >= 8
        assert seen["attention"] == seen["fused_attention"] == seen["int8_attention"] == 2
        assert seen["fallbacks"] == []

    def test_attention_that_does_not_fuse_in_int8_fuses_in_fp16(self, tmp_path: Path):
        seen = self.fusion("swin", "int8", tmp_path)
        assert seen["quantized_products"] == seen["int8_products"] > 0
        assert (seen["fused_attention"], seen["int8_attention"]) == (seen["attention"], 0)

    @pytest.mark.parametrize("family", ["vit", "fastvit"])
    def test_fp16_attention_fuses_between_its_float_casts(self, family: str, tmp_path: Path):
        seen = self.fusion(family, "fp16", tmp_path)
        assert seen["attention"] == seen["fused_attention"] > 0
        assert seen["quantized_products"] == 0

    def test_a_packed_qkv_falls_back_and_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        packed = replace(SCHEME, splits_qkv=False)
        monkeypatch.setattr("tests.targets.test_tensorrt.SCHEME", packed)
        seen = self.fusion("vit", "int8", tmp_path)
        fallbacks = [f for f in seen["fallbacks"] if "qkv" in f["name"]]
        assert len(fallbacks) == 2
        assert "reads Int8, Half: dequantised before" in fallbacks[0]["reason"]

    def test_the_same_graph_gives_the_same_engine(self, tmp_path: Path):
        digests = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            request = request_for("vit", "fp16", tmp_path / name)
            digests.append(load_target("trt-rtx").build(request).sha256)
        assert digests[0] == digests[1]

    def test_the_parser_s_refusal_names_the_node(self, vit_graph: ir.Model, tmp_path: Path):
        """ONNX knows Unique, TensorRT does not."""
        gelu = next(node for node in vit_graph.graph if node.op_type == "Gelu")
        unique = ir.node("Unique", [gelu.inputs[0]], attributes={"axis": 1}, name="the_unique")
        unique.outputs[0].name = "unique_output"
        unique.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        vit_graph.graph.insert_before(gelu, unique)
        gelu.replace_input_with(0, unique.outputs[0])
        request = BuildRequest("model", vit_graph, "fp32", tmp_path, None)
        with pytest.raises(ExportError, match=r"does not read.*Unique 'the_unique'"):
            load_target("trt-rtx").build(request)


@pytest.mark.gpu
@pytest.mark.trt
@pytest.mark.parametrize("name", ["trt", "trt-rtx"])
def test_the_engine_runs_and_agrees_with_what_stood_in(name: str, tmp_path: Path):
    from vitdeploy.targets.tensorrt_runner import stand_in_runner

    target = load_target(name)
    if target.untimed_reason() is not None:
        pytest.skip(str(target.untimed_reason()))
    artifact = target.build(request_for("vit", "int8", tmp_path))
    feeds = feeds_of(canonical("vit"))
    with (
        target.open(artifact) as engine,
        stand_in_runner(tmp_path / "model.strong.onnx", None, name) as stand_in,
    ):
        seen, expected = engine(feeds)["logits"], stand_in(feeds)["logits"]
    # INT8 codes are the same but where FP16 sums of other order fall on the other side of an edge
    noise = np.square(expected - seen).sum() / np.square(expected).sum()
    assert 10 * np.log10(1 / noise) > 25
