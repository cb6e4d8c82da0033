"""Fixtures shared by all tests: small graphs and models, made here, seeded."""

import os

# Before any engine starts: tests run beside each other on small machines.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.graph import tiny

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def exports_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the processes of one run export each tiny model once."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ[tiny.SHARED_FOLDER] = str(folder)


@pytest.fixture
def shared() -> Path:
    """The folder with trained models and CIFAR-10, where the checkout has one beside it."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent: the trained models are not part of the repository")
    return SHARED


def tiny_vit_graph(seed: int = 0, opset: int = 20) -> ir.Model:
    """A patch convolution, LayerNorm, an MLP with residual and a head; 3x16x16 -> 5 logits."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int, scale: float = 0.3) -> onnx.TensorProto:
        return numpy_helper.from_array((scale * rng.standard_normal(shape)).astype("f4"), name)

    initializers = [
        weight("patch.weight", 8, 3, 4, 4),
        weight("patch.bias", 8),
        weight("norm.weight", 8, scale=1.0),
        weight("norm.bias", 8),
        weight("fc1.weight", 8, 32),
        weight("fc1.bias", 32),
        weight("fc2.weight", 32, 8),
        weight("fc2.bias", 8),
        weight("head.weight", 5, 8),
        weight("head.bias", 5),
        numpy_helper.from_array(np.array([0, 8, 16]), "tokens"),
        numpy_helper.from_array(np.array([1]), "token_axis"),
    ]
    nodes = [
        helper.make_node(
            "Conv",
            ["pixel_values", "patch.weight", "patch.bias"],
            ["grid"],
            "patch",
            strides=[4, 4],
        ),
        helper.make_node("Reshape", ["grid", "tokens"], ["flat"], "flatten"),
        helper.make_node("Transpose", ["flat"], ["stream"], "transpose", perm=[0, 2, 1]),
        helper.make_node(
            "LayerNormalization",
            ["stream", "norm.weight", "norm.bias"],
            ["normed"],
            "norm",
            axis=-1,
        ),
        helper.make_node("MatMul", ["normed", "fc1.weight"], ["hidden_0"], "fc1"),
        helper.make_node("Add", ["hidden_0", "fc1.bias"], ["hidden_1"], "fc1_bias"),
        helper.make_node("Gelu", ["hidden_1"], ["hidden_2"], "gelu"),
        helper.make_node("MatMul", ["hidden_2", "fc2.weight"], ["mlp_0"], "fc2"),
        helper.make_node("Add", ["mlp_0", "fc2.bias"], ["mlp_1"], "fc2_bias"),
        helper.make_node("Add", ["stream", "mlp_1"], ["residual"], "residual"),
        helper.make_node("ReduceMean", ["residual", "token_axis"], ["pooled"], "pool", keepdims=0),
        helper.make_node(
            "Gemm", ["pooled", "head.weight", "head.bias"], ["logits"], "head", transB=1
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.fixture
def vit_graph() -> ir.Model:
    """See `tiny_vit_graph`."""
    return tiny_vit_graph()


@pytest.fixture
def pixels() -> np.ndarray:
    """(6, 3, 16, 16) float32, normalised images."""
    return np.random.default_rng(1).standard_normal((6, 3, 16, 16)).astype(np.float32)
