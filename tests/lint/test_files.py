"""Files as people have them: damaged, without data, with external data, inside a package."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.lint import graphs
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.lint import lint_file


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def with_external_data(folder: Path) -> Path:
    """A bad product whose weights, scales too, lie beside the file."""
    path = folder / "model.onnx"
    model = graphs.product(1, 63)
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    return path


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ModelError, match="no ONNX file"):
        lint_file(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\x00" * 64])
def test_a_file_that_is_no_onnx(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a valid ONNX file"):
        lint_file(path)


def test_a_file_that_was_cut_short(tmp_path: Path):
    path = saved(graphs.product(1, 64), tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match="not a valid ONNX file"):
        lint_file(path)


def test_an_unknown_version_is_told_before_the_file_is_read(tmp_path: Path):
    with pytest.raises(UsageError, match="no version of TensorRT"):
        lint_file(tmp_path / "none.onnx", "9.1")


def test_external_data_is_read_where_a_rule_needs_it(tmp_path: Path):
    report = lint_file(with_external_data(tmp_path))
    assert [r.number for r in report.results if r.verdict == "fail"] == [4, 28]


def test_large_external_weights_are_not_read(tmp_path: Path):
    """A sparse file of 3 GB: reading it whole would take that much memory."""
    rows, columns = 1 << 16, 3 << 14
    model = graphs.graph(
        f"""g (float[1,{rows}] x) => (float[1,{columns}] y) {{
             w = DequantizeLinear <axis = 1> (codes, s, z)
             y = MatMul(x, w)
           }}""",
        s=np.full(columns, 0.1, np.float32),
        z=np.zeros(columns, np.int8),
    )
    tensor = onnx.TensorProto(name="codes", data_type=onnx.TensorProto.INT8, dims=[rows, columns])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "model.data"), ("length", str(rows * columns))):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    with (tmp_path / "model.data").open("wb") as data:
        data.truncate(rows * columns)
    report = lint_file(saved(model, tmp_path))
    assert report.errors == 0
    assert next(r for r in report.results if r.number == 4).verdict == "pass"


def test_external_data_that_is_missing_cut_or_elsewhere(tmp_path: Path):
    path = with_external_data(tmp_path)
    data = tmp_path / "model.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError, match="ends at byte 100"):
        lint_file(path)
    data.unlink()
    with pytest.raises(ModelError, match="not beside it"):
        lint_file(path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../model.data"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="outside its own folder"):
        lint_file(path)


def test_inputs_that_a_package_profiles_may_be_dynamic(tmp_path: Path):
    path = saved(graphs.plain(shape="batch,4,32"), tmp_path)
    alone = lint_file(path)
    assert (alone.errors, alone.warnings) == (0, 1)
    contents = {
        "format": "vitdeploy-trt-package",
        "parts": [{"inputs": [{"name": "x", "min": [1, 4, 32]}]}],
    }
    (tmp_path / "package.json").write_text(json.dumps(contents))
    packaged = lint_file(path)
    assert (packaged.errors, packaged.warnings) == (0, 0)
    (tmp_path / "package.json").write_text('{"name": "of another tool"}')
    assert lint_file(path).warnings == 1


def test_a_package_without_the_profile_is_an_error(tmp_path: Path):
    path = saved(graphs.plain(shape="batch,4,32"), tmp_path)
    contents = {"format": "vitdeploy-trt-package", "parts": [{"inputs": [{"name": "other"}]}]}
    (tmp_path / "package.json").write_text(json.dumps(contents))
    report = lint_file(path)
    assert report.errors == 1
    assert "package.json has no range for it" in report.findings[0].why
