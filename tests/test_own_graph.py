"""An artefact that its engine runs otherwise than its graph says is an error, not a low figure."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from tests.compress.int4_graph import batches, pictures, small_vit
from tests.graph.test_conv_bias import IMAGES, READERS, model_with
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.activations import ActivationRecord
from vitdeploy.bundle import Artifact
from vitdeploy.compress.int8 import Int8Result, quantize_int8
from vitdeploy.errors import ExportError
from vitdeploy.findings import Compressed
from vitdeploy.own_graph import Seen, require_own_graph
from vitdeploy.recipe import Int8Section
from vitdeploy.runner import Feeds, Outputs
from vitdeploy.targets import BuildRequest, Settings, load_target, openvino
from vitdeploy.targets.onnx import runner_from_model

FEEDS = {"pixel_values": pictures(4, 3)}


class Disturbed:
    """A runner whose outputs are off by noise of a given SQNR."""

    engine, threads = "an engine", 1

    def __init__(self, outputs: Outputs, sqnr_db: float) -> None:
        self._outputs = {name: off_by(value, sqnr_db) for name, value in outputs.items()}

    def __call__(self, feeds: Feeds) -> Outputs:
        return self._outputs

    def __enter__(self) -> "Disturbed":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Engine:
    """Stands for a target; with float settings it is off by `float_db` alone."""

    def __init__(self, outputs: Outputs, float_db: float) -> None:
        self._outputs, self._float_db = outputs, float_db

    def float_settings(self, artifact: Artifact) -> Settings:
        return {"type": "f32"}

    def open(self, artifact: Artifact, threads: int | None = None) -> Disturbed:
        assert artifact.settings == {"type": "f32"}
        return Disturbed(self._outputs, self._float_db)


def off_by(value: np.ndarray, sqnr_db: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(value.shape)
    power = np.square(value.astype("f8")).sum() / 10 ** (sqnr_db / 10)
    return (value + noise * np.sqrt(power / np.square(noise).sum())).astype("f4")


@pytest.fixture(scope="module")
def quantized() -> Int8Result:
    section = Int8Section(placement="all", folds="off", search_seconds=1)
    return quantize_int8(small_vit(), load_target("onnx").quant_scheme(), batches(16), section)


def outputs_of(model) -> Outputs:
    with runner_from_model(model) as runner:
        return runner(FEEDS)


def artifact(precision: str) -> Artifact:
    return Artifact("model", "none", precision, Path("model"), "", 0, None, (), (), {}, ())


def judged(
    item: Compressed, graph: Outputs, own_db: float, engine_db: float, float_db: float
) -> None:
    """Judge an engine off its graph by `engine_db`, the graph off the reference by `own_db`."""
    reference = {name: off_by(value, own_db) for name, value in graph.items()}
    engine = {name: off_by(value, engine_db) for name, value in graph.items()}
    seen = Seen(FEEDS, reference, engine, "dynamic")
    require_own_graph(Engine(graph, float_db), item, seen, "an engine")


@pytest.mark.parametrize(
    ("own_db", "engine_db", "float_db"),
    [
        (30, 25, 0),  # rounding
        (30, 12, 40),  # bf16 between INT8 products
        (10, 5, 0),  # a model that amplifies any rounding
    ],
)
def test_rounding_is_no_fault(quantized, own_db, engine_db, float_db):
    item = Compressed(artifact("int8"), quantized)
    judged(item, outputs_of(quantized.model), own_db, engine_db, float_db)


@pytest.mark.parametrize(("own_db", "engine_db"), [(30, 12), (10, 2), (60, 19)])
def test_another_function_is_one(quantized, own_db, engine_db):
    item = Compressed(artifact("int8"), quantized)
    graph = outputs_of(quantized.model)
    with pytest.raises(ExportError, match=r"an engine does not compute 'model' as its int8 graph"):
        judged(item, graph, own_db, engine_db, float_db=engine_db)


@pytest.mark.parametrize(
    ("precision", "enough", "too_little"), [("fp32", 45, 35), ("bf16", 12, 8), ("fp16", 12, 8)]
)
def test_a_float_artefact_is_held_to_the_reference(precision, enough, too_little):
    item, graph = Compressed(artifact(precision)), outputs_of(small_vit())
    judged(item, graph, 200, enough, float_db=0)
    with pytest.raises(ExportError, match=rf"{precision} graph.*use another --target, and report"):
        judged(item, graph, 200, too_little, float_db=200)


def test_what_w4a8_adds_is_in_no_graph(quantized):
    graph = outputs_of(quantized.model)
    record = ActivationRecord("int8", 15.0, 4)
    item = Compressed(artifact("mixed"), quantized, activations=record)
    judged(item, graph, 30, 15, float_db=15)
    with pytest.raises(ExportError, match=r"at least 10\.0 dB"):
        judged(item, graph, 30, 8, float_db=8)


def test_outputs_that_hardly_follow_the_images_are_centred():
    graph = {"logits": np.random.default_rng(1).standard_normal((4, 10)).astype("f4")}
    item = Compressed(artifact("bf16"))
    engine = {"logits": off_by(graph["logits"], 5)}
    common = {name: value + 100 for name, value in graph.items()}
    seen = Seen(FEEDS, common, {"logits": engine["logits"] + 100}, "dynamic")
    require_own_graph(Engine(common, 0), item, seen, "an engine")
    centred = dataclasses.replace(seen, centred=True)
    with pytest.raises(ExportError, match="output 'logits'"):
        require_own_graph(Engine(common, 0), item, centred, "an engine")


def test_openvinos_own_fault_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = model_with(READERS["average pool"])
    result = Int8Result(model, (), (), 100.0)
    with runner_from_model(model, in_listed_order=True) as runner:
        expected = runner(IMAGES)

    def judge(folder: str) -> None:
        (tmp_path / folder).mkdir()
        request = BuildRequest("model", model, "int8", tmp_path / folder, None)
        item = Compressed(openvino.build(request), result)
        with openvino.open(item.artifact) as runner:
            seen = Seen(IMAGES, expected, runner(IMAGES), "dynamic")
        require_own_graph(load_target("openvino"), item, seen, "OpenVINO")

    judge("mended")
    monkeypatch.setattr(openvino, "bias_shared_convs_", lambda model: None)
    with pytest.raises(ExportError, match="OpenVINO does not compute 'model' as its int8 graph"):
        judge("as_it_is")


def test_a_run_fails_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_vit_folder(tmp_path / "model")
    write_images(tmp_path / "images", per_class=6)
    honest = openvino.OpenVinoRunner.__call__

    def negated(runner: openvino.OpenVinoRunner, feeds: Feeds) -> Outputs:
        return {name: -value for name, value in honest(runner, feeds).items()}

    monkeypatch.setattr(openvino.OpenVinoRunner, "__call__", negated)
    with pytest.raises(ExportError, match=r"fp32 graph says: output 'logits' differs by -\d"):
        vitdeploy.export(
            str(tmp_path / "model"),
            output=tmp_path / "out",
            precision="fp32",
            targets=["openvino"],
            evaluation={"path": str(tmp_path / "images")},
            measure={"seconds": 0},
        )
    assert not (tmp_path / "out").exists()
