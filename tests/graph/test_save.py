"""One file below protobuf's limit, a pair that can be moved above it, nothing after a failure."""

import errno
import mmap
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import psutil
import pytest

from vitdeploy.errors import DataError
from vitdeploy.graph import save
from vitdeploy.graph.save import drop_mapped_pages, save_model, weights_bytes
from vitdeploy.targets.onnx import OrtRunner, runner_from_model


@pytest.fixture
def tiny_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph is past the limit now."""
    monkeypatch.setattr(save, "PROTOBUF_LIMIT_BYTES", 100)


def run(path: Path, pixels: np.ndarray) -> np.ndarray:
    with OrtRunner(path) as runner:
        return runner({"pixel_values": pixels})["logits"]


def test_the_size_is_that_of_all_constants(vit_graph: ir.Model):
    floats = 8 * 3 * 4 * 4 + 8 + 8 + 8 + 8 * 32 + 32 + 32 * 8 + 8 + 5 * 8 + 5
    assert weights_bytes(vit_graph) == 4 * floats + 8 * 4  # four int64 of shapes and axes


def test_a_small_graph_is_one_file(vit_graph: ir.Model, tmp_path: Path):
    assert save_model(vit_graph, tmp_path / "model.onnx") == (tmp_path / "model.onnx",)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


@pytest.mark.usefixtures("tiny_limit")
def test_a_large_graph_has_its_weights_beside_it(
    vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):
    ir.save(vit_graph, tmp_path / "whole.onnx")
    expected = run(tmp_path / "whole.onnx", pixels)
    folder = tmp_path / "a"
    folder.mkdir()
    files = save_model(vit_graph, folder / "model.onnx")
    assert files == (folder / "model.onnx", folder / "model.onnx.data")
    assert sorted(folder.iterdir()) == list(files)
    stored = onnx.load(files[0], load_external_data=False)
    locations = {
        entry.value
        for tensor in stored.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {"model.onnx.data"}
    for file in files:
        assert str(tmp_path).encode() not in file.read_bytes()
    moved = folder.rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(run(moved / "model.onnx", pixels), expected)


@pytest.mark.usefixtures("tiny_limit")
def test_saving_does_not_change_the_graph_in_memory(
    vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):
    before = ir.to_proto(vit_graph).SerializeToString()
    save_model(vit_graph, tmp_path / "model.onnx")
    for file in tmp_path.iterdir():
        file.unlink()
    assert ir.to_proto(vit_graph).SerializeToString() == before


@pytest.mark.usefixtures("tiny_limit")
@pytest.mark.parametrize(
    ("number", "text"), [(errno.ENOSPC, "disk full"), (errno.EACCES, "cannot be written")]
)
def test_nothing_is_left_after_a_failure(
    number: int,
    text: str,
    vit_graph: ir.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(_model: ir.Model, path: Path, *, external_data: str | None) -> None:
        path.write_bytes(b"half")
        assert external_data is not None
        (path.parent / external_data).write_bytes(b"half")
        raise OSError(number, "no")

    monkeypatch.setattr(ir, "save", fail)
    with pytest.raises(DataError, match=text):
        save_model(vit_graph, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_refused(vit_graph: ir.Model, tmp_path: Path):
    with pytest.raises(DataError, match=r"'model\.onnx' cannot be written"):
        save_model(vit_graph, tmp_path / "none" / "model.onnx")


def test_a_small_graph_keeps_nothing_in_the_file_it_comes_from(
    vit_graph: ir.Model, pixels: np.ndarray, tmp_path: Path
):
    """So it is with what stays in float of a large graph that was quantised."""
    ir.save(vit_graph, tmp_path / "parent.onnx")
    expected = run(tmp_path / "parent.onnx", pixels)
    ir.save(
        vit_graph, tmp_path / "parent.onnx", external_data="parent.data", size_threshold_bytes=0
    )
    mapped = ir.load(tmp_path / "parent.onnx")
    with runner_from_model(mapped) as runner:
        np.testing.assert_array_equal(runner({"pixel_values": pixels})["logits"], expected)
    folder = tmp_path / "a"
    folder.mkdir()
    (path,) = save_model(mapped, folder / "model.onnx")
    values = mapped.graph.initializers.values()
    assert any(isinstance(value.const_value, ir.ExternalTensor) for value in values)
    del mapped, values
    (tmp_path / "parent.data").unlink()
    np.testing.assert_array_equal(run(path, pixels), expected)


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system takes no advice")
def test_memory_of_mapped_weights_is_given_back(tmp_path: Path):
    draw = np.random.default_rng(0).standard_normal((1 << 24,)).astype(np.float32)  # 64 MiB
    name, path = "w", tmp_path / "weights.data"
    path.write_bytes(draw.tobytes())
    tensor = ir.ExternalTensor(
        path.name,
        0,
        draw.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape(draw.shape),
        name=name,
        base_dir=str(tmp_path),
    )
    value = ir.Value(
        name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
    )
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=[value]), ir_version=10)
    seen = tensor.numpy()
    assert seen.sum() == draw.sum()
    process = psutil.Process()
    before = process.memory_info().rss
    drop_mapped_pages(model)
    assert before - process.memory_info().rss > draw.nbytes // 2
    assert np.array_equal(seen, draw)


def test_weights_in_memory_stay(vit_graph: ir.Model):
    expected = ir.to_proto(vit_graph).SerializeToString()
    drop_mapped_pages(vit_graph)
    assert ir.to_proto(vit_graph).SerializeToString() == expected
