"""One small network as an ONNX file and as OpenVINO's IR."""

from pathlib import Path

import onnx_ir as ir
import openvino as ov
import pytest

from tests.conftest import tiny_vit_graph


@pytest.fixture(scope="package")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiling") / "tiny.onnx"
    ir.save(tiny_vit_graph(), path)
    return path


@pytest.fixture(scope="package")
def ir_file(onnx_file: Path) -> Path:
    path = onnx_file.with_suffix(".xml")
    ov.save_model(ov.convert_model(onnx_file), path, compress_to_fp16=False)
    return path
