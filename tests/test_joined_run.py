"""A run of a model of two parts: exported, compared by masks, packaged, checked and timed again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitdeploy
from tests.model_folders import write_images
from tests.models.segment_anything.tiny import SIZE, sam_model, write_sam_folder
from vitdeploy.bundle import load_bundle
from vitdeploy.checking import check
from vitdeploy.cli import exit_code_from
from vitdeploy.golden import read_golden
from vitdeploy.profiling import profile
from vitdeploy.recipe import recipe_from_yaml
from vitdeploy.report import Report, read_report

TARGETS = ("onnx", "openvino", "trt")
MASK_METRICS = {
    "mask_iou_mean",
    "mask_iou_min",
    "boundary_iou_mean",
    "mask_choice_agreement",
    "iou_prediction_error",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `images` and, exported in INT8 for three targets, `bundle`."""
    root = tmp_path_factory.mktemp("joined")
    write_sam_folder(root / "model", sam_model())
    write_images(root / "images")
    vitdeploy.export(
        str(root / "model"),
        output=root / "bundle",
        precision="int8",
        targets=list(TARGETS),
        calibration={"path": str(root / "images"), "samples": 6},
        evaluation={"samples": 5},
        int8={"search_seconds": 0},
        measure={"seconds": 0.2, "search_seconds": 0},
        gates={"max_drop_points": 0},
    )
    return root


@pytest.fixture(scope="module")
def report(place: Path) -> Report:
    return read_report(place / "bundle/report.json")


def values(report: Report, target: str, part: str) -> dict[str, float]:
    rows = [row for row in report.fidelity if (row.target, row.part) == (target, part)]
    return {row.metric: row.value for row in rows}


@pytest.mark.parametrize("target", TARGETS)
def test_the_encoder_is_int8_and_the_decoder_float(report: Report, target: str):
    kept = {row.part: row.precision for row in report.artifacts if row.target == target}
    assert kept == {"image_encoder": "int8", "mask_decoder": "fp32"}


@pytest.mark.parametrize("target", TARGETS)
def test_masks_are_the_measure_and_the_encoder_is_compared_too(report: Report, target: str):
    whole = values(report, target, "model")
    assert set(whole) == MASK_METRICS
    # random weights: INT8 moves some edges, but these are the reference's masks and no others'
    assert 0.8 < whole["mask_iou_mean"] < 1.0
    assert values(report, target, "image_encoder")["cosine_mean"] > 0.99
    assert values(report, target, "mask_decoder") == {}
    (row,) = [r for r in report.fidelity if (r.target, r.metric) == (target, "mask_iou_mean")]
    assert row.n == 5 * 6


def test_both_parts_are_proved_and_timed(report: Report):
    assert [(row.part, row.batch) for row in report.parity] == [
        ("image_encoder", 2),
        ("image_encoder", 3),
        ("mask_decoder", 2),
        ("mask_decoder", 3),
    ]
    timed = {(row.target, row.part, row.batch) for row in report.latency}
    parts = ("image_encoder", "mask_decoder")
    assert timed == {(t, part, 1) for t in ("reference", "onnx", "openvino") for part in parts}


def test_tensorrt_gets_no_output_that_it_cannot_size(place: Path, report: Report):
    bundle = load_bundle(place / "bundle")
    outputs = {
        target: {tensor.name for tensor in bundle.artifacts(target, "mask_decoder")[0].outputs}
        for target in TARGETS
    }
    assert outputs["onnx"] == outputs["openvino"] == outputs["trt"] | {"masks"}
    (decoder,) = bundle.artifacts("trt", "mask_decoder")
    assert "orig_im_size" not in {tensor.name for tensor in decoder.inputs}
    assert any("trt" in note and "'masks'" in note for note in report.notes)


def test_the_device_gets_both_parts_with_pictures_and_prompts(place: Path):
    contents = json.loads((place / "bundle/trt/package.json").read_text())
    encoder, decoder = contents["parts"]
    assert (encoder["name"], decoder["name"]) == ("image_encoder", "mask_decoder")
    assert len(encoder["golden"]) == len(decoder["golden"]) == 2
    inputs = decoder["golden"][0]["inputs"]
    assert inputs["point_coords"]["shape"] == [2, 2, 2]
    assert "orig_im_size" not in inputs
    made = encoder["golden"][1]["reference"]["image_embeddings"]
    read = decoder["golden"][1]["inputs"]["image_embeddings"]
    folder = place / "bundle/trt"
    assert (folder / made["file"]).read_bytes() == (folder / read["file"]).read_bytes()
    verdicts = json.loads((folder / "lint.json").read_text())
    assert {verdict["errors"] for verdict in verdicts} == {0}


def test_a_bundle_checks_its_masks_by_itself(place: Path):
    found = check(place / "bundle", max_drop_points=100)
    assert found.passed
    for target in TARGETS:
        assert set(values(found, target, "model")) == MASK_METRICS
    gates = {gate.name for gate in found.gates if gate.name.startswith("golden")}
    assert gates == {
        f"golden_sqnr_db:{target}:{part}"
        for target in TARGETS
        for part in ("image_encoder", "mask_decoder")
    }


def test_a_check_can_be_against_another_bundle_and_gated(place: Path):
    same = check(place / "bundle", against=place / "bundle", max_drop_points=0.0)
    assert same.passed
    assert values(same, "onnx", "model")["mask_iou_min"] == 1.0
    assert same.gates[0].name == "max_drop_points:onnx:mask_iou_mean"
    assert not check(place / "bundle").passed


def test_a_changed_decoder_is_found(place: Path, tmp_path: Path):
    bundle = tmp_path / "bundle"
    shutil.copytree(place / "bundle", bundle)
    file = bundle / "onnx/mask_decoder.onnx"
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    assert exit_code_from(["check", str(bundle)]) == 7


def test_a_bundle_is_timed_by_part(place: Path):
    rows = profile([place / "bundle"], seconds=0.2).latency
    timed = {(row.target, row.part, row.batch) for row in rows}
    assert timed == {
        (f"bundle:{target}", part, 1)
        for target in TARGETS
        for part in ("image_encoder", "mask_decoder")
    }


def test_few_pictures_and_prompts_are_kept(place: Path):
    golden = read_golden(place / "bundle", "mask_decoder")
    assert golden.inputs["point_coords"].shape == (2, 2, 2, 2)
    low = SIZE.image // 16 * 4
    assert golden.outputs["low_res_masks"].shape == (2, 2, 4, low, low)
    encoder = read_golden(place / "bundle", "image_encoder")
    assert len(encoder.inputs["pixel_values"]) == 2
    assert np.isfinite(encoder.outputs["image_embeddings"]).all()


def test_the_resolved_recipe_writes_the_same_artefacts(place: Path, tmp_path: Path):
    recipe = recipe_from_yaml(place / "bundle/recipe.yaml")
    recipe = recipe.model_copy(update={"targets": ("onnx",)})
    vitdeploy.run(recipe, output=tmp_path / "again")
    for part in ("image_encoder", "mask_decoder"):
        before, after = (
            root / f"onnx/{part}.onnx" for root in (place / "bundle", tmp_path / "again")
        )
        assert before.read_bytes() == after.read_bytes()


def test_a_gate_is_on_what_the_masks_lose(report: Report):
    gates = {gate.name: gate for gate in report.gates}
    assert set(gates) == {f"max_drop_points:{target}:mask_iou_mean" for target in TARGETS}
    for target in TARGETS:
        lost = 100 * (1 - values(report, target, "model")["mask_iou_mean"])
        assert gates[f"max_drop_points:{target}:mask_iou_mean"].value == pytest.approx(lost)
    assert not report.passed
