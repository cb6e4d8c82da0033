"""Runs with `--bake-preprocessing`: artefacts that read pictures."""

import json
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image

import vitdeploy
from vitdeploy import baking
from vitdeploy.data import packaged_set
from vitdeploy.errors import ExportError, UnsupportedError, UsageError

BAKED = {"bake_preprocessing": True}
QUICK = {"measure": {"seconds": 0}, "calibration": {"samples": 16}, "evaluation": {"samples": 40}}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The digits model in FP32 for both engines: reading pictures, and reading pixels."""
    folder = tmp_path_factory.mktemp("baked")
    for name, section in (("pictures", BAKED), ("pixels", {})):
        vitdeploy.export(
            "vit-digits",
            targets=["onnx", "openvino"],
            output=folder / name,
            export=section,
            **QUICK,
        )
    return folder


def test_the_artefact_reads_pictures_and_says_so(bundles):
    manifest = json.loads((bundles / "pictures/manifest.json").read_text(encoding="utf-8"))
    for part in manifest["parts"]:
        (tensor,) = part["inputs"]
        assert tensor["name"] == "pictures"
        assert tensor["shape"] == ["batch", "picture_height", "picture_width", 3]
        assert tensor["dtype"] == "uint8"
    (graph_input,) = onnx.load(bundles / "pictures/onnx/model.onnx").graph.input
    assert graph_input.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    report = json.loads((bundles / "pictures/report.json").read_text(encoding="utf-8"))
    notes = [note for note in report["notes"] if "prepares them itself" in note]
    assert [note.split(",")[0] for note in notes] == ["onnx", "openvino"]
    assert "The graph does this itself" in (bundles / "pictures/model_card.md").read_text("utf-8")
    assert "The graph does this itself" not in (bundles / "pixels/model_card.md").read_text("utf-8")
    assert not list((bundles / "pictures").rglob(".baking*"))


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_both_predict_the_same(bundles, target):
    images = packaged_set("digits", "eval")
    pictures = [images.open(index) for index in range(20)]
    with vitdeploy.load(bundles / "pictures", target) as predictor:
        seen = predictor.predict_many(pictures)
    with vitdeploy.load(bundles / "pixels", target) as predictor:
        expected = predictor.predict_many(pictures)
    assert [one.label for one in seen] == [one.label for one in expected]
    logits = np.stack([one.outputs["logits"] for one in expected])
    off = np.stack([one.outputs["logits"] for one in seen]) - logits
    # digits are enlarged, so that halves are frequent
    assert np.sqrt(np.square(off).mean() / np.square(logits).mean()) < 0.02


def test_pictures_of_any_size_are_taken(bundles):
    large = packaged_set("digits", "eval").open(3).resize((160, 200), Image.Resampling.BICUBIC)
    with vitdeploy.load(bundles / "pictures", "onnx") as predictor:
        seen = predictor.predict(np.asarray(large))
    with vitdeploy.load(bundles / "pixels", "onnx") as predictor:
        expected = predictor.predict(np.asarray(large))
    assert seen.label == expected.label
    np.testing.assert_allclose(
        seen.classes[0].probability, expected.classes[0].probability, atol=0.02
    )


def test_check_feeds_pictures_and_compares_with_the_other_kind(bundles):
    checked = vitdeploy.check(bundles / "pictures")
    assert all(gate.passed for gate in checked.gates)
    against = vitdeploy.check(bundles / "pictures", against=bundles / "pixels")
    assert all(row.value == 100.0 for row in against.fidelity if row.metric == "agreement")
    with pytest.raises(UsageError, match="prepares pictures itself"):
        vitdeploy.check(bundles / "pixels", against=bundles / "pictures")


def test_check_finds_a_graph_that_prepares_otherwise(bundles, tmp_path):
    shutil.copytree(bundles / "pictures", tmp_path / "bundle")
    path = tmp_path / "bundle/onnx/model.onnx"
    model = onnx.load(path)
    (resize,) = [node for node in model.graph.node if node.op_type == "Resize"]
    for attribute in resize.attribute:
        if attribute.name == "mode":
            attribute.s = b"nearest"
    kept = [a for a in resize.attribute if a.name in ("mode", "coordinate_transformation_mode")]
    del resize.attribute[:]
    resize.attribute.extend(kept)
    onnx.save(model, path)
    manifest = tmp_path / "bundle/manifest.json"
    text = json.loads(manifest.read_text(encoding="utf-8"))
    digest, size = vitdeploy.bundle.sha256_from_file(path), path.stat().st_size
    for entry in (*text["files"], *text["parts"]):
        if entry["path"] == "onnx/model.onnx":
            entry.update(sha256=digest, bytes=size)
    manifest.write_text(json.dumps(text), encoding="utf-8")
    gates = {gate.name: gate.passed for gate in vitdeploy.check(tmp_path / "bundle").gates}
    assert gates == {"golden_sqnr_db:onnx:model": False, "golden_sqnr_db:openvino:model": True}


def test_profile_feeds_pictures_and_diagnose_refuses_them(bundles):
    from vitdeploy.diagnosis import diagnose
    from vitdeploy.profiling.options import ProfileOptions
    from vitdeploy.profiling.subjects import sources_of

    source = sources_of(str(bundles / "pictures"), ProfileOptions(), bundles)[0]
    (feeds,) = source.feeds_at(3).values()
    assert feeds.dtype == np.uint8
    assert feeds.shape[0] == 3
    assert feeds.shape[3] == 3
    with pytest.raises(UnsupportedError, match=r"diagnose|INT8"):
        diagnose(bundles / "pictures")


def test_a_fixed_batch_is_filled_up(tmp_path):
    vitdeploy.export("vit-digits", output=tmp_path / "out", export={**BAKED, "batch": 2}, **QUICK)
    assert all(gate.passed for gate in vitdeploy.check(tmp_path / "out").gates)
    images = packaged_set("digits", "eval")
    with vitdeploy.load(tmp_path / "out") as predictor:
        labels = [p.label for p in predictor.predict_many([images.open(i) for i in range(3)])]
    assert labels == [images.label_names[images.labels[i]] for i in range(3)]


def test_an_engine_that_prepares_otherwise_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(baking, "MOST_LEVELS_OFF", -1.0)
    with pytest.raises(ExportError, match="prepares pictures otherwise than Pillow does"):
        vitdeploy.export("vit-digits", output=tmp_path / "out", export=BAKED, **QUICK)
    assert not list(tmp_path.iterdir())


def test_it_is_refused_before_the_work(tmp_path):
    with pytest.raises(UnsupportedError, match="'trt' has no resize with antialiasing"):
        vitdeploy.export("vit-digits", targets=["trt"], output=tmp_path / "out", export=BAKED)
    with pytest.raises(UnsupportedError, match="takes prompts too"):
        vitdeploy.export(
            "sam-scenes", output=tmp_path / "out", export=BAKED, measure={"seconds": 0}
        )
    with pytest.raises(UsageError, match="--tiles"):
        vitdeploy.export(
            "vit-digits",
            output=tmp_path / "out",
            export={**BAKED, "tiles": 4},
            model_options={"outputs": "features"},
        )
    assert not list(tmp_path.iterdir())
