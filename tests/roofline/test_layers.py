"""What engines' layers compute and move, against the network's own arithmetic."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import openvino as ov
import pytest

from tests.conftest import tiny_vit_graph
from vitdeploy.graph.work import macs_by_node
from vitdeploy.roofline.layers import LayerCount, Tensor, moved_bytes
from vitdeploy.roofline.openvino_layers import openvino_layers
from vitdeploy.roofline.ort_layers import ort_layers

BATCH = 2
FEEDS = {"pixel_values": np.random.default_rng(0).standard_normal((BATCH, 3, 16, 16), "f4")}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layers") / "tiny.onnx"
    ir.save(tiny_vit_graph(), path)
    return path


@pytest.fixture(scope="module")
def macs(file: Path) -> int:
    counted = macs_by_node(ir.load(file), BATCH)
    return BATCH * sum(value or 0 for value in counted.values())


def total(layers: tuple[LayerCount, ...]) -> int:
    return sum(layer.macs or 0 for layer in layers)


def test_openvino_s_layers_have_all_the_arithmetic(file: Path, macs: int):
    layers = openvino_layers(file, {"INFERENCE_PRECISION_HINT": "f32"}, FEEDS, 1)
    assert total(layers) == macs
    products = [layer for layer in layers if layer.is_product]
    assert {layer.type for layer in products} == {"fp32"}
    # the weights of patch, fc1, fc2 and head in float32
    assert sum(layer.weight_bytes for layer in products) == 4 * (8 * 48 + 2 * 8 * 32 + 5 * 8)
    assert all(layer.milliseconds > 0 for layer in layers)


def test_onnx_runtime_s_kernels_have_all_the_arithmetic(file: Path, macs: int):
    layers = ort_layers(file, {}, FEEDS, 1)
    assert total(layers) == macs
    products = [layer for layer in layers if layer.is_product]
    # ONNX Runtime's blocked layout pads the patch convolution from 8 to 16 channels, or not
    rest = 4 * (2 * 8 * 32 + 5 * 8)
    seen = sum(layer.weight_bytes for layer in products)
    assert seen in (rest + 4 * 8 * 48, rest + 4 * 16 * 48)
    for layer in products:
        assert (layer.bytes or 0) > layer.weight_bytes


def attention_model(tokens: int, width: int) -> ov.Model:
    """One attention: (1, 2, tokens, width) in and out, which OpenVINO fuses."""
    from openvino import opset13 as op

    query, key, value = (op.parameter([1, 2, tokens, width], np.float32) for _ in range(3))
    for name, node in zip("qkv", (query, key, value), strict=True):
        node.output(0).get_tensor().set_names({name})
    fused = op.scaled_dot_product_attention(query, key, value)
    return ov.Model([fused], [query, key, value])


def test_fused_attention_counts_both_products(tmp_path: Path):
    tokens, width = 128, 32
    ov.save_model(attention_model(tokens, width), tmp_path / "attention.xml")
    feeds = {name: np.random.rand(1, 2, tokens, width).astype("f4") for name in "qkv"}
    layers = openvino_layers(tmp_path / "attention.xml", {}, feeds, 1)
    assert total(layers) == 2 * (2 * tokens * tokens * width)
    assert sum(layer.weight_bytes for layer in layers) == 0


def test_int8_products_are_int8(tmp_path: Path):
    from vitdeploy.roofline.ceilings import _product

    model = _product("int8", (64, 32, 48))
    model.inputs[0].get_tensor().set_names({"x"})
    ov.save_model(model, tmp_path / "int8.xml", compress_to_fp16=False)
    feeds = {"x": np.random.rand(64, 32).astype("f4")}
    layers = openvino_layers(tmp_path / "int8.xml", {}, feeds, 1)
    (product,) = (layer for layer in layers if layer.is_product)
    assert product.type == "int8"
    assert product.macs == 64 * 32 * 48
    assert product.weight_bytes == 32 * 48


def test_int4_weights_are_read_and_multiplied_in_another_type(tmp_path: Path):
    from openvino import opset13 as op

    data = op.parameter([64, 128], np.float32)
    data.output(0).get_tensor().set_names({"x"})
    codes = np.random.default_rng(0).integers(0, 16, (48, 2, 64)).astype(np.uint8)
    packed = ov.Tensor(ov.Type.u4, ov.Shape(codes.shape))
    packed.data[:] = (codes[..., ::2] | codes[..., 1::2] << 4).reshape(packed.data.shape)
    halves = op.convert(op.constant(packed), np.float16)
    scaled = op.multiply(halves, op.constant(np.full((48, 2, 1), 0.01, np.float16)))
    weight = op.convert(op.reshape(scaled, [48, 128], special_zero=False), np.float32)
    model = ov.Model([op.matmul(data, weight, transpose_a=False, transpose_b=True)], [data])
    ov.save_model(model, tmp_path / "int4.xml", compress_to_fp16=False)
    feeds = {"x": np.random.rand(64, 128).astype("f4")}
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    layers = openvino_layers(tmp_path / "int4.xml", settings, feeds, 1)
    (product,) = (layer for layer in layers if layer.is_product)
    assert product.type == "fp32"
    assert product.macs == 64 * 48 * 128
    assert product.weight_bytes == 48 * 128 // 2


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_onnx_runtime_s_convolutions_count_alike(tmp_path: Path, kind: str):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    sizes = {"Conv": (8, 4), "ConvTranspose": (4, 8)}  # of the weight's first two axes
    weight = np.random.default_rng(0).standard_normal((*sizes[kind], 2, 2)).astype("f4")
    node = helper.make_node(kind, ["x", "w"], ["y"], "layer", strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "conv.onnx")
    feeds = {"x": np.zeros((1, 4, 8, 8), "f4")}
    layers = ort_layers(tmp_path / "conv.onnx", {}, feeds, 1)
    # each of 4 x 4 places of the smaller grid, or each of 8 x 8 of the input, meets the weight once
    places = {"Conv": 4 * 4, "ConvTranspose": 8 * 8}[kind]
    assert total(layers) == places * 4 * 8 * 2 * 2


def test_bytes_follow_shapes_and_types():
    tensors = [Tensor((2, 3), "fp32"), Tensor((10,), "int8"), Tensor((10,), "int4")]
    assert moved_bytes(tensors) == 24 + 10 + 5
