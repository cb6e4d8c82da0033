"""The main job on a small model, and that its result can be made again, checked and used."""

import json
import os
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import vitdeploy
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.bundle import load_bundle
from vitdeploy.errors import CompressionError, DataError, ExportError, UsageError
from vitdeploy.pipeline import output_folder
from vitdeploy.recipe import recipe_from_dict, recipe_from_yaml
from vitdeploy.report import Report, read_report


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `images` and, exported in INT8 for both targets, `bundle`."""
    root = tmp_path_factory.mktemp("pipeline")
    write_vit_folder(root / "model")
    write_images(root / "images")
    vitdeploy.export(str(root / "model"), output=root / "bundle", **sections(root))
    return root


def sections(root: Path, **changes) -> dict:
    return {
        "precision": "int8",
        "targets": ["onnx", "openvino"],
        "calibration": {"path": str(root / "images"), "samples": 12},
        "evaluation": {"path": str(root / "images")},
        "measure": {"seconds": 0.2},
        **changes,
    }


@pytest.fixture
def report(place: Path) -> Report:
    return read_report(place / "bundle" / "report.json")


def test_the_bundle_is_whole(place: Path):
    names = {p.relative_to(place / "bundle").as_posix() for p in (place / "bundle").rglob("*")}
    assert {
        "manifest.json", "report.json", "report.html", "model_card.md", "recipe.yaml",
        "onnx/model.onnx", "openvino/model.xml", "openvino/model.bin",
        "golden/model.npz", "golden/model.onnx.npz", "golden/model.openvino.npz",
    } <= names  # fmt: skip
    assert not any(name.startswith("reference") for name in names)
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_the_report_has_what_was_measured(report: Report):
    metrics = {(row.target, row.metric) for row in report.fidelity}
    for target in ("onnx", "openvino"):
        assert {(target, m) for m in ("top1", "agreement", "cosine_mean", "sqnr_db")} <= metrics
        assert report.speedup[target] is not None
        assert 0 < report.size_bytes[target] < report.size_bytes["reference"]
    assert {row.target for row in report.latency} == {"reference", "onnx", "openvino"}
    assert next(row for row in report.latency if row.target == "reference").precision == "fp32"
    assert [row.batch for row in report.parity] == [2, 3]
    assert all(row.max_relative < 1e-5 for row in report.parity)
    assert report.stamps == ()
    assert {row.name for row in report.stages} >= {"load", "export", "parity", "fidelity onnx"}
    assert report.calibration is not None
    assert report.calibration.images == 12


def test_int8_is_faithful_on_both_engines(report: Report):
    for row in report.fidelity:
        if row.metric == "sqnr_db":
            assert row.value is not None
            assert row.value > 25


def test_the_model_is_quantised_as_promised(report: Report, place: Path):
    for row in report.artifacts:
        assert row.precision == "int8"
        assert row.int8_macs_percent is not None
        assert row.int8_macs_percent >= 80
    model = onnx.load(place / "bundle/onnx/model.onnx")
    fed_by_dq = {
        node.op_type
        for node in model.graph.node
        for name in node.input
        if name.endswith("_dequantized")
    }
    assert fed_by_dq <= {"MatMul", "Conv", "Transpose", "Reshape", "Add"}
    assert "LayerNormalization" in {node.op_type for node in model.graph.node}
    assert "Gelu" in {node.op_type for node in model.graph.node}


def test_fidelity_is_that_of_the_artefact_run_by_hand(place: Path, report: Report):
    """Top-1 of the ONNX file, computed without any code of ours but the preprocessing."""
    from vitdeploy.data import Preprocess, load_batches, scan_images

    manifest = json.loads((place / "bundle/manifest.json").read_text())
    images = scan_images(place / "images", manifest["label_names"])
    session = ort.InferenceSession(str(place / "bundle/onnx/model.onnx"))
    right = 0
    for pixels, indices in load_batches(images, Preprocess.from_dict(manifest["preprocess"]), 8):
        logits = session.run(["logits"], {"pixel_values": pixels})[0]
        right += int((logits.argmax(1) == np.asarray(images.labels)[indices]).sum())
    row = next(r for r in report.fidelity if (r.target, r.metric) == ("onnx", "top1"))
    assert row.value == pytest.approx(100 * right / len(images))


def test_nothing_names_this_machine(place: Path):
    for path in (place / "bundle").rglob("*"):
        if path.is_file() and path.name != "recipe.yaml":
            # A short host name may stand in the pictures' letters by chance.
            data = re.sub(rb"data:image/jpeg;base64,[A-Za-z0-9+/=]+", b"", path.read_bytes())
            for name in (str(place), str(Path.cwd()), os.uname().nodename):
                assert name.encode() not in data, f"{path.name} names {name}"


def test_the_recipe_in_the_bundle_gives_the_same_bytes(place: Path, tmp_path: Path):
    recipe = recipe_from_yaml(place / "bundle/recipe.yaml")
    vitdeploy.run(recipe, output=tmp_path / "again")
    for name in ("onnx/model.onnx", "openvino/model.xml", "openvino/model.bin"):
        assert (tmp_path / "again" / name).read_bytes() == (place / "bundle" / name).read_bytes()


def test_check_passes_here(place: Path):
    report = vitdeploy.check(place / "bundle")
    assert report.passed
    assert {gate.name for gate in report.gates} == {
        "golden_sqnr_db:onnx:model",
        "golden_sqnr_db:openvino:model",
    }


def test_check_sees_a_changed_byte(place: Path, tmp_path: Path):
    copy = copy_of(place / "bundle", tmp_path / "copy")
    data = bytearray((copy / "openvino/model.bin").read_bytes())
    data[100] ^= 1
    (copy / "openvino/model.bin").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"openvino/model.bin: expected sha256"):
        vitdeploy.check(copy)


def test_check_fails_on_an_engine_that_computes_something_else(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    from vitdeploy.targets.onnx import OrtRunner

    right = OrtRunner.__call__

    def wrong(self, feeds):
        return {name: value * 1.2 for name, value in right(self, feeds).items()}

    monkeypatch.setattr(OrtRunner, "__call__", wrong)
    failed = [gate.name for gate in vitdeploy.check(place / "bundle").gates if not gate.passed]
    assert failed == ["golden_sqnr_db:onnx:model"]


def test_check_against_another_bundle(place: Path):
    report = vitdeploy.check(place / "bundle", against=place / "bundle", max_drop_points=0.0)
    assert report.passed
    values = {row.value for row in report.fidelity if row.metric == "max_abs_diff"}
    assert values == {0.0}


def test_predictor_names_the_class(place: Path):
    for target in ("onnx", "openvino"):
        with vitdeploy.load(place / "bundle", target) as predictor:
            prediction = predictor.predict(place / "images/red/00.png")
            many = predictor.predict_many([place / "images/red/00.png"] * 3)
        assert prediction.label in ("red", "green", "blue")
        assert prediction.classes[0].probability >= prediction.classes[1].probability
        assert [p.label for p in many] == [prediction.label] * 3
    with pytest.raises(UsageError, match="has no target 'trt'"):
        vitdeploy.load(place / "bundle", "trt")
    with vitdeploy.load(place / "bundle") as predictor, pytest.raises(DataError):
        predictor.predict(place / "none.png")


def test_profile_times_bundles_and_files(place: Path):
    report = vitdeploy.profile([place / "bundle", place / "bundle/onnx/model.onnx"], seconds=0.1)
    names = [row.target for row in report.latency]
    assert names == ["bundle:onnx", "bundle:openvino", "model.onnx"]
    assert report.speedup["bundle:onnx"] == 1.0
    with pytest.raises(UsageError):
        vitdeploy.profile([place / "images"])


def test_fixed_batch_and_reference(place: Path, tmp_path: Path):
    changes = {"export": {"batch": 2}, "keep_reference": True, "targets": ["onnx"]}
    options = sections(place, **changes)
    report = vitdeploy.export(str(place / "model"), output=tmp_path / "b2", **options)
    artifact = load_bundle(tmp_path / "b2").artifacts()[0]
    assert artifact.inputs[0].shape == (2, 3, 32, 32)
    assert {row.batch for row in report.latency} == {2}
    assert (tmp_path / "b2/reference/model.onnx").is_file()
    assert vitdeploy.check(tmp_path / "b2").passed


def test_features_have_both_outputs(place: Path, tmp_path: Path):
    options = sections(place, model_options={"outputs": "features"}, precision="fp32")
    report = vitdeploy.export(str(place / "model"), output=tmp_path / "f", **options)
    outputs = {row.output for row in report.fidelity}
    assert outputs == {"last_hidden_state", "pooler_output"}
    assert not {row.metric for row in report.fidelity} & {"top1", "agreement"}


def test_a_gate_that_fails_still_writes_everything(place: Path, tmp_path: Path):
    options = sections(place, gates={"min_speedup": 1e6}, targets=["onnx"])
    report = vitdeploy.export(str(place / "model"), output=tmp_path / "g", **options)
    assert not report.passed
    assert vitdeploy.check(tmp_path / "g").passed


def test_gates_fail_where_nothing_was_measured(place: Path, tmp_path: Path):
    changes = {"gates": {"min_speedup": 0.1}, "measure": {"seconds": 0}, "targets": ["onnx"]}
    report = vitdeploy.export(
        str(place / "model"), output=tmp_path / "g", **sections(place, **changes)
    )
    assert report.speedup == {"onnx": None}
    assert not report.passed


def test_a_model_of_ones_own_is_not_calibrated_on_other_peoples_photographs(place: Path):
    options = sections(place, calibration={})
    with pytest.raises(UsageError, match="--calib FOLDER"):
        vitdeploy.export(str(place / "model"), output=place / "x", **options)


def test_wrong_graph_is_an_error_and_leaves_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import vitdeploy.onnx_export as module

    exact = module.onnx_from_part

    def broken(*arguments):
        model = exact(*arguments)
        norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
        norm.attributes.pop("epsilon", None)
        norm.attributes.add(module.ir.AttrFloat32("epsilon", 1e-2))
        return model

    monkeypatch.setattr("vitdeploy.stages.onnx_from_part", broken)
    with pytest.raises(ExportError, match="differs from torch"):
        vitdeploy.export(str(place / "model"), output=tmp_path / "out", **sections(place))
    assert not list(tmp_path.iterdir())


def test_interrupt_leaves_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitdeploy.stages.measure_latency", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vitdeploy.export(str(place / "model"), output=tmp_path / "out", **sections(place))
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_survives_a_failed_replacement(place: Path, tmp_path: Path):
    copy = copy_of(place / "bundle", tmp_path / "copy")
    with pytest.raises(UsageError, match="--force"):
        vitdeploy.export(str(place / "model"), output=copy, **sections(place))
    options = sections(place, int8={"keep_float": ["nothing-like-this"]})
    with pytest.raises(CompressionError, match="fits none"):
        vitdeploy.export(str(place / "model"), output=copy, force=True, **options)
    assert vitdeploy.check(copy).passed


def test_truncated_image_is_skipped_and_counted(place: Path, tmp_path: Path):
    images = write_images(tmp_path / "images")
    victim = images / "red/00.png"
    victim.write_bytes(victim.read_bytes()[:300])
    options = sections(place, calibration={"path": str(images)}, evaluation={"path": str(images)})
    report = vitdeploy.export(str(place / "model"), output=tmp_path / "out", **options)
    assert report.evaluation is not None
    assert (report.evaluation.images, report.evaluation.skipped) == (35, 1)
    assert {row.n for row in report.fidelity} == {35}
    for number in range(1, 4):
        (images / f"green/{number:02}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="more than 5%"):
        vitdeploy.export(str(place / "model"), output=tmp_path / "two", **options)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [("vit-tiny", "vit-tiny-int8"), ("timm:resnet18", "resnet18-int8"), ("a/b/", "b-int8")],
)
def test_default_output_folder(source: str, name: str):
    recipe = recipe_from_dict({"model": {"source": source}, "precision": "int8"})
    assert output_folder(recipe) == Path(name)


def copy_of(bundle: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(bundle, to))
