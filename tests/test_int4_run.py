"""INT4 from a model folder to a bundle: what the report says of it, and that it can be used."""

import dataclasses
from pathlib import Path

import pytest

import vitdeploy
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.bundle import load_bundle
from vitdeploy.cpu import cpu_has
from vitdeploy.errors import UnsupportedError
from vitdeploy.recipe import recipe_from_yaml
from vitdeploy.report import read_report

TARGETS = ("onnx", "openvino", "trt")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `images` and, exported in INT4, `bundle`."""
    root = tmp_path_factory.mktemp("int4")
    write_vit_folder(root / "model")
    write_images(root / "images")
    vitdeploy.export(str(root / "model"), output=root / "bundle", **sections(root))
    return root


def sections(root: Path, **changes) -> dict:
    return {
        "precision": "int4",
        "targets": list(TARGETS),
        "calibration": {"path": str(root / "images"), "samples": 24},
        "evaluation": {"path": str(root / "images")},
        "export": {"trt_version": "10.15"},
        "measure": {"seconds": 0},
        **changes,
    }


def test_the_report_says_what_was_kept_and_computed_on(place: Path):
    report = read_report(place / "bundle/report.json")
    computed_on = {row.target: row.activations for row in report.artifacts}
    half = "bfloat16" if cpu_has("bf16") else "float32"
    assert computed_on == {"onnx": "float32", "openvino": half, "trt": "float16"}
    for row in report.artifacts:
        assert row.precision == "w4a16"
        assert row.int4_weights_percent is not None
        assert row.int4_weights_percent > 70  # the patch convolution and small projections are not
        assert row.int8_macs_percent is None
        # names and shapes are as long as the codes in so small a model
        assert report.size_bytes[row.target] < 0.6 * report.size_bytes["reference"]
    notes = " ".join(report.notes)
    for text in ("INT4 on openvino", "they compute on activations in", "needs TensorRT 10.15"):
        assert text in notes
    stages = [row.name for row in report.stages]
    assert stages.count("quantize int4") == 1  # once for all targets


def test_it_is_faithful_everywhere(place: Path):
    report = read_report(place / "bundle/report.json")
    values = {row.target: row.value for row in report.fidelity if row.metric == "sqnr_db"}
    assert set(values) == set(TARGETS)
    # shaken random weights: 4 bits on weights without structure
    assert all(value is not None and value > 18 for value in values.values())


def test_the_bundle_checks_and_predicts(place: Path):
    assert vitdeploy.check(place / "bundle").passed
    with vitdeploy.load(place / "bundle", "onnx") as predictor:
        assert predictor.predict(place / "images/red/00.png").label in ("red", "green", "blue")


def test_the_settings_travel_with_the_bundle(place: Path):
    settings = {a.target: dict(a.settings) for a in load_bundle(place / "bundle").artifacts()}
    assert settings["onnx"] == {"session.qdq_matmulnbits_accuracy_level": "1"}
    assert settings["openvino"]["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"


def test_the_recipe_in_the_bundle_gives_the_same_bytes(place: Path, tmp_path: Path):
    recipe = recipe_from_yaml(place / "bundle/recipe.yaml")
    assert set(recipe.int4.choices) == set(TARGETS)
    report = vitdeploy.run(recipe, output=tmp_path / "again")
    assert report.passed
    for name in ("onnx/model.onnx", "openvino/model.bin", "trt/model.strong.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == (place / "bundle" / name).read_bytes()


@pytest.mark.skipif(not cpu_has("vnni"), reason="OpenVINO has w4a8 on CPUs with VNNI alone")
def test_w4a8_computes_on_int8(place: Path, tmp_path: Path):
    changes = {"precision": "w4a8", "targets": ["onnx", "openvino"]}
    report = vitdeploy.export(
        str(place / "model"), output=tmp_path / "w4a8", **sections(place, **changes)
    )
    for row in report.artifacts:
        assert (row.precision, row.activations) == ("w4a8", "int8")
        assert row.activations_sqnr_db is not None
        assert 25 < row.activations_sqnr_db < 65
    assert vitdeploy.check(tmp_path / "w4a8").passed


def test_mostly_int8_is_called_mixed(place: Path, tmp_path: Path):
    changes = {"targets": ["onnx"], "int4": {"mixed": True, "min_sqnr_db": 60}}
    report = vitdeploy.export(
        str(place / "model"), output=tmp_path / "mixed", **sections(place, **changes)
    )
    assert report.artifacts[0].precision == "mixed"
    assert vitdeploy.check(tmp_path / "mixed").passed


def test_a_missed_gate_widens_the_noisiest_products(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import vitdeploy.restoration as module

    exact, seen = module.compare, []

    def compare(job, target, compressed):
        """One point lost while more than two products are INT4."""
        judged = exact(job, target, compressed)
        (item,) = compressed
        seen.append(len(item.int4.int4))
        lost = float(len(item.int4.int4) > 2)
        rows = [
            row.model_copy(update={"reference": 90.0, "value": 90.0 - lost, "delta": -lost})
            if row.metric == "top1"
            else row
            for row in judged.rows
        ]
        return dataclasses.replace(judged, rows=rows)

    monkeypatch.setattr(module, "compare", compare)
    changes = {"targets": ["onnx"], "gates": {"max_drop_points": 0.5}}
    report = vitdeploy.export(
        str(place / "model"), output=tmp_path / "wide", **sections(place, **changes)
    )
    assert report.passed
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] <= 2 < seen[-2]
    recipe = recipe_from_yaml(tmp_path / "wide/recipe.yaml")
    assert len(recipe.int4.choices["onnx"].kept_int8) >= seen[0] - 2


def test_an_old_tensorrt_is_refused_before_any_work(place: Path, tmp_path: Path):
    changes = {"export": {"trt_version": "10.3"}}
    with pytest.raises(UnsupportedError, match=r"TensorRT 10\.3 reads no INT4"):
        vitdeploy.export(
            str(place / "model"), output=tmp_path / "old", **sections(place, **changes)
        )
    assert not (tmp_path / "old").exists()
