"""The whole of build.py on a real GPU with a real TensorRT; nothing else shows what it shows."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitdeploy.device import (
    InputSpec,
    PackageGraph,
    PackageOptions,
    PackagePart,
    cases_from_arrays,
    write_package,
)

WIDTH, CLASSES = 64, 16


def write_product(path: Path, weight: np.ndarray, *, is_half: bool) -> None:
    """x (batch, 64) -> logits (batch, 16): a product in FP16 between casts, or in FP32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", "weight"], ["logits"])]
    if is_half:
        nodes = [
            helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["half", "weight"], ["product"]),
            helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
        ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weight.astype("f2" if is_half else "f4"), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


@pytest.mark.gpu
@pytest.mark.trt
def test_a_package_builds_runs_and_is_timed(tmp_path: Path):
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((WIDTH, CLASSES)).astype(np.float32)
    images = rng.standard_normal((8, WIDTH)).astype(np.float32)
    cases = cases_from_arrays({"x": images}, {"logits": images @ weight}, 4)
    halved = weight.astype(np.float16).astype(np.float32)
    graphs = []
    for typing, oldest in (("strong", "10.0"), ("weak", "8.6")):
        path = tmp_path / f"model.{typing}.onnx"
        write_product(path, weight, is_half=typing == "strong")
        outputs = tuple({"logits": case.inputs["x"] @ halved} for case in cases)
        graphs.append(PackageGraph("fp16", typing, path, outputs, oldest))
    spec = InputSpec("x", "float32", ("batch", WIDTH), (1, WIDTH), (4, WIDTH), (8, WIDTH))
    part = PackagePart("model", (spec,), ("logits",), tuple(graphs), cases)
    write_package(tmp_path, (part,), PackageOptions("product"))
    result = subprocess.run(
        [sys.executable, str(tmp_path / "build.py")], capture_output=True, text=True, check=False
    )
    if result.returncode == 6:
        pytest.skip(f"no GPU: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "device_report.json").read_text())
    item = report["parts"][0]["candidates"][0]
    assert item["golden"]["passed"] is True
    assert item["latency"][0]["p50_ms"] > 0
    assert item["layers"]
    assert (tmp_path / "model.engine").stat().st_size == item["engine_bytes"]
