"""What was computed on is measured: an engine that does otherwise is caught."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.compress.int4_graph import batches, pictures, small_vit
from vitdeploy.activations import record_activations
from vitdeploy.bundle import Artifact
from vitdeploy.compress.int4 import quantize_int4
from vitdeploy.cpu import cpu_has
from vitdeploy.errors import UnsupportedError
from vitdeploy.recipe import Int4Section
from vitdeploy.targets import BuildRequest, load_target
from vitdeploy.targets.openvino import GROUP, HINT

PICTURES = [{"pixel_values": pictures(8, 3)}]
NEEDS_VNNI = pytest.mark.skipif(
    not cpu_has("vnni"), reason="OpenVINO quantises activations on CPUs with VNNI alone"
)


@pytest.fixture(scope="module")
def graph() -> ir.Model:
    return quantize_int4(small_vit(), batches(32), Int4Section(placement="all")).model


def built(name: str, precision: str, graph: ir.Model, folder: Path) -> Artifact:
    request = BuildRequest("model", graph, precision, folder, "0" * 64)
    return load_target(name).build(request)


def logits(name: str, artifact: Artifact) -> np.ndarray:
    with load_target(name).open(artifact) as runner:
        return runner(PICTURES[0])["logits"]


@pytest.mark.parametrize("name", ["onnx", pytest.param("openvino", marks=NEEDS_VNNI)])
def test_w4a8_and_w4a16_compute_differently_on_the_same_file(
    name: str, graph: ir.Model, tmp_path: Path
):
    records = {}
    for precision in ("w4a16", "w4a8"):
        folder = tmp_path / precision
        folder.mkdir()
        artifact = built(name, precision, graph, folder)
        records[precision] = record_activations(load_target(name), artifact, graph, PICTURES)
    assert records["w4a8"].type == "int8"
    assert records["w4a16"].type in ("float32", "bfloat16")
    assert records["w4a8"].images == 8
    # 8 bits a value in blocks of up to 64, over eight products
    assert records["w4a8"].sqnr_db is not None
    assert 25 < records["w4a8"].sqnr_db < 65
    if name == "onnx":
        assert (records["w4a16"].sqnr_db or np.inf) > 90
    names = {file.name for file in (tmp_path / "w4a16").iterdir()}
    for file in names - {"model.xml"}:
        assert (tmp_path / "w4a16" / file).read_bytes() == (tmp_path / "w4a8" / file).read_bytes()


def test_openvino_on_float32_is_float32(graph: ir.Model, tmp_path: Path):
    """With bf16 out of the way nothing is left that differs: no activation is quantised."""
    artifact = built("openvino", "w4a16", graph, tmp_path)
    assert artifact.settings[GROUP] == "0"
    plain = dataclasses.replace(artifact, settings={**artifact.settings, HINT: "f32"})
    expected = logits("onnx", built("onnx", "w4a16", graph, tmp_path))
    np.testing.assert_allclose(logits("openvino", plain), expected, rtol=1e-3, atol=1e-3)


def test_an_engine_that_quantises_unasked_is_caught(graph: ir.Model, tmp_path: Path):
    artifact = built("onnx", "w4a16", graph, tmp_path)
    unset = dataclasses.replace(artifact, settings={})  # ONNX Runtime's default is INT8
    with pytest.raises(UnsupportedError, match=r"w4a16.*as it does where it quantises"):
        record_activations(load_target("onnx"), unset, graph, PICTURES)


def test_an_engine_that_does_not_quantise_is_caught(graph: ir.Model, tmp_path: Path):
    artifact = built("onnx", "w4a8", graph, tmp_path)
    float_ = {"session.qdq_matmulnbits_accuracy_level": "1"}
    with pytest.raises(UnsupportedError, match=r"w4a8.*computes on float"):
        record_activations(
            load_target("onnx"), dataclasses.replace(artifact, settings=float_), graph, PICTURES
        )


def test_a_record_is_said_in_words(graph: ir.Model, tmp_path: Path):
    artifact = built("onnx", "w4a8", graph, tmp_path)
    text = record_activations(load_target("onnx"), artifact, graph, PICTURES).text
    assert text.startswith("int8 (")
    assert "dB SQNR to float32 ones on 8 images" in text
