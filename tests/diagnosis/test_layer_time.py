"""Time by layer, from each engine's counters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.bundle import load_bundle
from vitdeploy.diagnosis.layer_time import MOST_LAYERS, time_by_layer, times_by_layer
from vitdeploy.targets import LayerTime, onnx, openvino


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same model in `fp32` and `int8`, for both engines."""
    root = tmp_path_factory.mktemp("layer_time")
    write_vit_folder(root / "model")
    write_images(root / "images")
    for precision in ("fp32", "int8"):
        vitdeploy.export(
            str(root / "model"),
            output=root / precision,
            precision=precision,
            targets=["onnx", "openvino"],
            calibration={"path": str(root / "images"), "samples": 12},
            evaluation={"path": str(root / "images"), "samples": 4},
            measure={"seconds": 0},
        )
    return root


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype("f4")}


def test_in_float_every_product_is_in_float(bundles: Path, feeds):
    found = times_by_layer(load_bundle(bundles / "fp32"), "model", feeds)
    assert [time.target for time in found] == ["onnx", "openvino"]
    for time in found:
        assert time.int8_products_percent == 0
        assert 0 < time.float_products_percent <= 100
        assert time.total_ms > 0
        assert len(time.layers) <= MOST_LAYERS
        costs = [layer.milliseconds for layer in time.layers]
        assert costs == sorted(costs, reverse=True)


def test_in_int8_the_engines_say_which_products_are(bundles: Path, feeds):
    """What the engine runs, not what the graph asks for: each has INT8 kernels here."""
    for time in times_by_layer(load_bundle(bundles / "int8"), "model", feeds):
        assert time.int8_products_percent > 0
        # On OpenVINO attention may be in INT8 too, and nothing is left.
        assert time.float_products_percent > 0 or time.target == "openvino"
        assert time.int8_products_percent + time.float_products_percent <= 100.0001


def test_every_int8_product_of_openvino_counts(bundles: Path, feeds):
    """A FullyConnected whose output stays INT8 has a kind of its own there."""
    (artifact,) = load_bundle(bundles / "int8").artifacts("openvino")
    connected = [x for x in openvino.layer_times(artifact, feeds) if "FullyConnected" in x.kind]
    assert len({layer.kind.split()[0] for layer in connected}) > 1
    assert all(layer.is_product for layer in connected)


def test_the_session_has_the_settings_of_the_artefact(bundles: Path, feeds):
    (artifact,) = load_bundle(bundles / "int8").artifacts("onnx")
    assert any(layer.is_int8 for layer in onnx.layer_times(artifact, feeds))
    plain = replace(artifact, settings={"session.disable_quant_qdq": "1"})
    layers = onnx.layer_times(plain, feeds)
    assert not any(layer.is_int8 for layer in layers)
    assert "QuantizeLinear" in {layer.kind for layer in layers}


def test_shares_are_of_the_sum_of_all_layers(bundles: Path, feeds, monkeypatch):
    layers = (
        LayerTime("fc", "FullyConnected i8", 1.0, is_product=True, is_int8=True),
        LayerTime("qk", "MatMul f32", 2.0, is_product=True, is_int8=False),
        LayerTime("softmax", "Softmax f32", 5.0, is_product=False, is_int8=False),
    )
    monkeypatch.setattr(openvino, "layer_times", lambda artifact, feeds: layers)
    (artifact,) = load_bundle(bundles / "int8").artifacts("openvino")
    time = time_by_layer(artifact, feeds)
    assert (time.total_ms, time.int8_products_percent, time.float_products_percent) == (
        8.0,
        12.5,
        25.0,
    )
    assert [layer.name for layer in time.layers] == ["softmax", "qk", "fc"]
