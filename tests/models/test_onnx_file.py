"""An ONNX file from elsewhere is described truthfully, or refused with a reason."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.onnx_files import add_output, fix_batch, rename, set_input, tiny_proto, write_onnx
from vitdeploy.errors import ModelError, UnsupportedError, UsageError
from vitdeploy.models import LoadOptions, describe, load
from vitdeploy.models.onnx_file import read_onnx
from vitdeploy.models.spec import LoadedModel, TensorSpec
from vitdeploy.onnx_export import check_parity, onnx_from_part
from vitdeploy.recipe import PreprocessSection
from vitdeploy.targets.onnx import runner_from_model


def loaded(path: Path, **options) -> LoadedModel:
    return load(LoadOptions(str(path), **options))


def test_names_shapes_and_size_are_those_of_the_file(tmp_path: Path):
    model = loaded(write_onnx(tmp_path / "net.onnx", lambda p: rename(p, "input:0", "Identity")))
    part = model.parts[0]
    assert part.inputs == (TensorSpec("input:0", ("batch", 3, 16, 16)),)
    assert part.outputs == (TensorSpec("Identity", ("batch", 5)),)
    assert model.class_output == "Identity"
    assert model.spec.preprocess.size == (16, 16)
    assert (model.spec.name, model.spec.source) == ("net", "onnx:net.onnx")


def test_parameters_and_macs_are_counted(tmp_path: Path):
    figures = describe(loaded(write_onnx(tmp_path / "net.onnx")))
    weights = [p for p in tiny_proto().graph.initializer if p.data_type == TensorProto.FLOAT]
    assert figures.parameters == sum(numpy_helper.to_array(w).size for w in weights)
    # 16 patches of 3x4x4 -> 8, 16 tokens through 8 -> 32 -> 8, one row 8 -> 5
    assert figures.gmacs == pytest.approx((16 * 48 * 8 + 2 * 16 * 8 * 32 + 8 * 5) / 1e9)


def test_preprocessing_is_as_given_or_assumed_with_a_note(tmp_path: Path):
    path = write_onnx(tmp_path / "net.onnx")
    section = PreprocessSection(mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.9)
    given = loaded(path, preprocess=section)
    assert given.spec.preprocess.mean == (0.5, 0.5, 0.5)
    assert given.spec.preprocess.crop_pct == 0.9
    assert given.spec.notes == ()
    assert "ImageNet's mean" in loaded(path).spec.notes[0]


def test_a_fixed_batch_and_an_open_size_are_bound(tmp_path: Path):
    fixed = loaded(write_onnx(tmp_path / "one.onnx", lambda p: fix_batch(p, 1)))
    assert fixed.parts[0].inputs[0].shape == (1, 3, 16, 16)
    dynamic = write_onnx(tmp_path / "n.onnx")
    assert loaded(dynamic, batch=4).parts[0].outputs[0].shape == (4, 5)
    open_size = write_onnx(tmp_path / "hw.onnx", lambda p: set_input(p, ["n", 3, "h", "w"]))
    assert loaded(open_size, image_size=16).parts[0].inputs[0].shape == ("batch", 3, 16, 16)
    with pytest.raises(ModelError, match="--image-size N"):
        loaded(open_size)


def test_several_outputs_are_features_unless_one_is_named_logits(tmp_path: Path):
    model = loaded(write_onnx(tmp_path / "both.onnx", lambda p: add_output(p, "pooled", ["n", 8])))
    assert model.class_output == "logits"

    def unnamed(proto: onnx.ModelProto) -> None:
        rename(proto, "x", "scores")
        add_output(proto, "residual", ["n", 16, 8])

    path = write_onnx(tmp_path / "unnamed.onnx", unnamed)
    assert loaded(path).class_output is None
    assert loaded(path, outputs="logits").class_output == "scores"
    single = write_onnx(tmp_path / "single.onnx", lambda p: rename(p, "x", "embedding"))
    assert loaded(single, outputs="features").class_output is None


@pytest.mark.parametrize("opset", [17, 18])
def test_an_older_opset_is_raised_and_proved_equal(opset: int, tmp_path: Path):
    torch = pytest.importorskip("torch")
    layers = [torch.nn.Conv2d(3, 8, 4, 4), torch.nn.GELU(), torch.nn.Flatten()]
    net = torch.nn.Sequential(*layers, torch.nn.LayerNorm(128), torch.nn.Linear(128, 5)).eval()
    path = tmp_path / "old.onnx"
    options = {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("n")},), "verbose": False}
    if opset < 18:  # the newer exporter starts at 18
        axes = {"x": {0: "n"}, "y": {0: "n"}}
        options = {"dynamo": False, "dynamic_axes": axes, "output_names": ["y"]}
    torch.onnx.export(
        net, (torch.zeros(2, 3, 16, 16),), path, opset_version=opset, input_names=["x"], **options
    )
    part = loaded(path).parts[0]
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype("f4")
    model = onnx_from_part(part, images, "dynamic", 20)
    assert model.opset_imports[""] == 20
    operators = [node.op_type for node in model.graph]
    assert "LayerNormalization" in operators
    assert "Gelu" in operators
    with runner_from_model(model) as runner:
        assert all(row.passed for row in check_parity(part, runner, images, [2, 3]))


def test_external_data_is_read(tmp_path: Path):
    path = tmp_path / "big.onnx"
    onnx.save(tiny_proto(), path, save_as_external_data=True, location="big.bin", size_threshold=64)
    part = loaded(path).parts[0]
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype("f4")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"pixel_values": images})[0]
    with runner_from_model(onnx_from_part(part, images, "dynamic", 20)) as runner:
        # float32 sums of at most 48 products in another order
        np.testing.assert_allclose(runner({"pixel_values": images})["logits"], expected, atol=1e-5)
    (tmp_path / "big.bin").unlink()
    with pytest.raises(ModelError, match=r"big\.bin.*not beside it"):
        loaded(path)


def test_local_functions_are_inlined(tmp_path: Path):
    def with_function(proto: onnx.ModelProto) -> None:
        body = [helper.make_node("Gelu", ["x"], ["y"])]
        opsets = [helper.make_opsetid("", 20)]
        own = helper.make_function("own", "Act", ["x"], ["y"], body, opsets)
        proto.functions.append(own)
        proto.opset_import.append(helper.make_opsetid("own", 1))
        node = next(n for n in proto.graph.node if n.op_type == "Gelu")
        node.op_type, node.domain = "Act", "own"

    proto = read_onnx(write_onnx(tmp_path / "f.onnx", with_function))
    assert not proto.functions
    assert "Gelu" in {node.op_type for node in proto.graph.node}


def half_weights(proto: onnx.ModelProto) -> None:
    weight = next(t for t in proto.graph.initializer if t.name == "fc1.bias")
    half = numpy_helper.from_array(numpy_helper.to_array(weight).astype("f2"), "fc1.half")
    proto.graph.initializer.remove(weight)
    proto.graph.initializer.append(half)
    proto.graph.node.insert(0, helper.make_node("Cast", ["fc1.half"], ["fc1.bias"], to=1))


def second_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def quantised(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    proto.graph.node.append(helper.make_node("QuantizeLinear", ["residual", "s"], ["q"], "quant"))


def control_flow(proto: onnx.ModelProto) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["residual"], ["r"])],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.node.append(
        helper.make_node(
            "If", ["yes"], ["chosen"], "choice", then_branch=branch, else_branch=branch
        )
    )


def runtime_operator(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    next(n for n in proto.graph.node if n.op_type == "Gelu").domain = "com.microsoft"


def class_number(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0))
    add_output(proto, "best", ["n"], TensorProto.INT64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: set_input(p, ["n", 16, 16, 3]), r"\(\?, 16, 16, 3\).*channels first"),
        (lambda p: set_input(p, ["n", 3, 16]), "RGB image"),
        (lambda p: set_input(p, ["n", 3, 16, 16], TensorProto.UINT8), "UINT8.*float32 image"),
        (half_weights, "weights in FLOAT16"),
        (quantised, "already quantised .QuantizeLinear quant"),
        (control_flow, "control flow .If choice"),
        (runtime_operator, r"com\.microsoft\.Gelu"),
        (class_number, r"'best'.*int64"),
        (lambda p: p.graph.ClearField("node"), "not a valid ONNX file"),
    ],
)
def test_what_cannot_be_quantised_is_refused(change, message: str, tmp_path: Path):
    with pytest.raises(ModelError, match=message):
        loaded(write_onnx(tmp_path / "bad.onnx", change))


def test_a_graph_of_more_than_an_image_is_beyond_this_tool(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"2 inputs \(pixel_values, mask\)"):
        loaded(write_onnx(tmp_path / "two.onnx", second_input))


def test_missing_and_damaged_files_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="no ONNX file"):
        loaded(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="not a valid ONNX file"):
        loaded(tmp_path / "text.onnx")
    whole = write_onnx(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="not a valid ONNX file"):
        loaded(tmp_path / "half.onnx")


def test_options_the_file_cannot_meet_are_refused(tmp_path: Path):
    path = write_onnx(tmp_path / "one.onnx", lambda p: fix_batch(p, 1))
    with pytest.raises(UsageError, match="fixed batch of 1"):
        loaded(path, batch=4)
    with pytest.raises(UsageError, match="16 x 16 pixels"):
        loaded(path, image_size=32)
    with pytest.raises(UsageError, match="named 'logits'"):
        loaded(path, outputs="features")

    def tokens_only(proto: onnx.ModelProto) -> None:
        proto.graph.output.pop()
        add_output(proto, "residual", ["n", 16, 8])

    with pytest.raises(UsageError, match="no output that could be logits"):
        loaded(write_onnx(tmp_path / "tokens.onnx", tokens_only), outputs="logits")


def test_a_batch_that_is_dynamic_in_name_only_is_refused(tmp_path: Path):
    def bake(proto: onnx.ModelProto) -> None:
        tokens = next(t for t in proto.graph.initializer if t.name == "tokens")
        tokens.CopyFrom(numpy_helper.from_array(np.array([1, 8, 16]), "tokens"))

    path = write_onnx(tmp_path / "baked.onnx", bake)
    with pytest.raises(ModelError, match="--batch 1"):
        loaded(path)
    assert loaded(path, batch=1).parts[0].inputs[0].shape[0] == 1
