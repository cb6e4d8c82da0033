"""`vitdeploy diagnose`: names the layer that is at fault, and says what truly helps."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import vitdeploy
from tests.diagnosis.faults import rewrite_artefact, shrink_range, update_manifest
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.cli import exit_code_from
from vitdeploy.diagnosis.schema import Diagnosis, PartDiagnosis
from vitdeploy.errors import DataError, UnsupportedError, UsageError
from vitdeploy.report import read_report

FAULTY = "blocks.1.mlp.fc1/MatMul"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `images`, and `bundle` in INT8 without its FP32 graph."""
    root = tmp_path_factory.mktemp("diagnose")
    write_vit_folder(root / "model")
    write_images(root / "images")
    vitdeploy.export(str(root / "model"), output=root / "bundle", **sections(root))
    return root


def sections(root: Path, **changes) -> dict:
    return {
        "precision": "int8",
        "calibration": {"path": str(root / "images"), "samples": 12},
        "evaluation": {"path": str(root / "images")},
        "measure": {"seconds": 0},
        **changes,
    }


@pytest.fixture(scope="module")
def sound(place: Path) -> Diagnosis:
    return vitdeploy.diagnose(place / "bundle", calib=str(place / "images"))


@pytest.fixture(scope="module")
def faulty(place: Path) -> Path:
    """A copy of the bundle in which what one product reads is clipped at a quarter."""
    bundle = place / "faulty"
    shutil.copytree(place / "bundle", bundle)
    rewrite_artefact(bundle, lambda proto: shrink_range(proto, FAULTY, 4.0))
    return bundle


def only_part(diagnosis: Diagnosis) -> PartDiagnosis:
    assert len(diagnosis.parts) == 1
    return diagnosis.parts[0]


def test_every_product_block_and_norm_is_there(sound: Diagnosis):
    part = only_part(sound)
    assert sound.images == 32
    assert sound.images_from == "images"
    layers = [f"blocks.{n}.{m}" for n in (0, 1) for m in ("attn.qkv", "attn.proj", "mlp.fc1")]
    names = {row.name for row in part.sites}
    assert {f"{layer}/MatMul" for layer in layers} <= names
    assert "patch_embed.proj/Conv" in names
    assert [row.name for row in part.blocks] == ["blocks.0", "blocks.1"]
    assert len(part.norms) == 5
    assert [row.is_int8 for row in part.sites] == sorted(
        (row.is_int8 for row in part.sites), reverse=True
    )
    shares = [row.output_share_percent for row in part.sites if row.is_int8]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100)


def test_a_sound_artefact_has_small_errors(sound: Diagnosis):
    part = only_part(sound)
    assert part.output_db > 25
    for row in part.sites:
        if row.is_int8:
            # 8 bits over a bell-shaped range give 35 to 50 dB
            assert row.made_db > 28
            assert row.clipped_percent < 5
        # what a product was given is not better than what it alone makes of exact input
        if row.made_db is not None:
            assert row.inherited_db < row.made_db + 3
    assert part.fp16 == ()


def test_coverage_agrees_with_the_report(place: Path, sound: Diagnosis):
    report = read_report(place / "bundle/report.json")
    coverage = only_part(sound).coverage
    assert coverage.weights_percent == pytest.approx(report.artifacts[0].int8_macs_percent)
    assert coverage.all_percent < coverage.weights_percent
    in_float = {row.name for row in only_part(sound).sites if not row.is_int8}
    assert set(coverage.kept_float) == in_float


def test_folds_are_seen_in_the_norms_not_as_errors(sound: Diagnosis):
    norms = [row for row in only_part(sound).norms if row.name.startswith("blocks")]
    assert any(row.after < row.before for row in norms)
    assert all(row.after is not None for row in norms)


def test_the_product_with_a_bad_range_is_named_first(place: Path, faulty: Path):
    part = only_part(vitdeploy.diagnose(faulty, calib=str(place / "images")))
    first = part.sites[0]
    assert first.name == FAULTY
    assert first.clipped_percent > 5
    assert first.output_share_percent > 50
    assert first.made_db == min(row.made_db for row in part.sites if row.made_db is not None)
    assert part.advice.keep_float[0] == FAULTY
    assert part.advice.lines[0].startswith(f"Keep in float: {FAULTY}")
    assert any("outside its range" in line for line in part.advice.lines)
    made = {row.name: row.made_db for row in part.blocks}
    assert made["blocks.1"] < made["blocks.0"]


def test_products_before_and_after_the_fault_are_not_blamed(
    place: Path, faulty: Path, sound: Diagnosis
):
    part = only_part(vitdeploy.diagnose(faulty, calib=str(place / "images")))
    before = {row.name: row for row in only_part(sound).sites}
    for row in part.sites:
        if row.made_db is not None and row.name != FAULTY:
            # the same weights and ranges; only maps measured on the same images could differ
            assert row.made_db == pytest.approx(before[row.name].made_db, abs=0.1)
    damaged = next(row for row in part.sites if row.name == "blocks.1.mlp.fc2/MatMul")
    assert damaged.inherited_db < before[damaged.name].inherited_db - 3


def test_bad_weights_are_found_too(place: Path):
    """Codes of a fourth of fc2's rows negated: an error of the weights, not of a range."""
    name = "blocks.0.mlp.fc2/MatMul"
    bundle = place / "weights"
    shutil.copytree(place / "bundle", bundle)

    def negate(proto: onnx.ModelProto) -> None:
        made_by = {out: node for node in proto.graph.node for out in node.output}
        node = next(node for node in proto.graph.node if node.name == name)
        codes = made_by[node.input[1]].input[0]
        tensor = next(t for t in proto.graph.initializer if t.name == codes)
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[: len(array) // 4] *= -1
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, codes))

    rewrite_artefact(bundle, negate)
    part = only_part(vitdeploy.diagnose(bundle))
    assert part.sites[0].name == name
    assert part.sites[0].made_db < 10


def test_the_expected_gain_is_that_of_repairing_the_product(
    place: Path, faulty: Path, sound: Diagnosis
):
    advice = only_part(vitdeploy.diagnose(faulty, calib=str(place / "images"))).advice
    # The sound artefact still has that product's rounding error, one of nine.
    assert advice.expected_db > only_part(sound).output_db - 1
    assert advice.expected_db < only_part(sound).output_db + 6


def test_keeping_the_worst_product_in_float_helps(place: Path):
    """Found without folds in min-max ranges, rounded to nearest; then measured by an export."""
    plain = {"folds": "off", "clip": "minmax", "placement": "all", "rounding": "nearest"}
    changes = {"int8": plain}
    images = str(place / "images")
    vitdeploy.export(
        str(place / "model"), output=place / "plain", force=True, **sections(place, **changes)
    )
    part = only_part(vitdeploy.diagnose(place / "plain", calib=images))
    worst = part.sites[0].name
    changes["int8"]["keep_float"] = (worst,)
    vitdeploy.export(
        str(place / "model"), output=place / "better", force=True, **sections(place, **changes)
    )
    better = only_part(vitdeploy.diagnose(place / "better", calib=images))
    assert next(row for row in better.sites if row.name == worst).is_int8 is False
    assert better.output_db > part.output_db
    assert better.coverage.weights_percent < part.coverage.weights_percent


def test_golden_inputs_are_the_default(place: Path, faulty: Path):
    diagnosis = vitdeploy.diagnose(faulty)
    assert (diagnosis.images, diagnosis.images_from) == (4, "golden")
    assert only_part(diagnosis).sites[0].name == FAULTY


def untimed(part: PartDiagnosis) -> PartDiagnosis:
    return part.model_copy(update={"time": ()})


def test_the_kept_reference_gives_the_same_as_one_made_again(place: Path, sound: Diagnosis):
    vitdeploy.export(
        str(place / "model"), output=place / "kept", **sections(place, keep_reference=True)
    )
    shutil.move(place / "model", place / "moved")
    try:
        kept = vitdeploy.diagnose(place / "kept", calib=str(place / "images"))
        # what was timed differs from run to run
        assert untimed(only_part(kept)) == untimed(only_part(sound))
        with pytest.raises(UnsupportedError, match=r"(?s)cannot be made again.*--keep-reference"):
            vitdeploy.diagnose(place / "bundle")
    finally:
        shutil.move(place / "moved", place / "model")


def test_another_model_at_the_same_place_is_refused(place: Path, tmp_path: Path):
    shutil.move(place / "model", tmp_path / "model")
    try:
        write_vit_folder(place / "model", seed=1)
        with pytest.raises(UnsupportedError, match=r"another\s+one by now.*--keep-reference"):
            vitdeploy.diagnose(place / "bundle")
    finally:
        shutil.rmtree(place / "model")
        shutil.move(tmp_path / "model", place / "model")


def test_a_reference_that_is_not_the_models_is_refused(place: Path, tmp_path: Path):
    bundle = tmp_path / "bundle"
    shutil.copytree(place / "kept", bundle)
    path = bundle / "reference/model.onnx"
    proto = onnx.load(path)
    bias = next(t for t in proto.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, "head.bias"))
    onnx.save(proto, path)
    update_manifest(bundle, "reference/model.onnx")
    with pytest.raises(DataError, match="differs from the golden outputs"):
        vitdeploy.diagnose(bundle)


def test_an_onnx_source_is_diagnosed_too(place: Path, tmp_path: Path):
    source = tmp_path / "source.onnx"
    shutil.copy(place / "kept/reference/model.onnx", source)
    vitdeploy.export(str(source), output=tmp_path / "bundle", **sections(place))
    part = only_part(vitdeploy.diagnose(tmp_path / "bundle"))
    assert FAULTY in {row.name for row in part.sites}


def test_a_budget_of_nothing_leaves_the_gain_unmeasured(place: Path, faulty: Path):
    part = only_part(vitdeploy.diagnose(faulty, seconds=0))
    first = part.sites[0]
    assert first.name == FAULTY  # then the order is by the error made
    assert first.output_share_percent is None
    assert "budget is 0 s" in first.output_share_percent_reason
    assert part.advice.keep_float == (FAULTY,)
    assert part.advice.expected_db is None


def test_a_fixed_batch_is_diagnosed_in_its_own_batch(place: Path):
    fixed = sections(place, export={"batch": 3})
    vitdeploy.export(str(place / "model"), output=place / "fixed", **fixed)
    assert only_part(vitdeploy.diagnose(place / "fixed")).output_db > 25


def test_json_and_html(place: Path, faulty: Path, capsys: pytest.CaptureFixture, tmp_path: Path):
    page = tmp_path / "d.html"
    assert exit_code_from(["diagnose", str(faulty), "--json", "--html", str(page)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    data = json.loads(printed.out)
    assert data["schema_version"] == 1
    assert Diagnosis.model_validate(data).parts[0].sites[0].name == FAULTY
    text = page.read_text()
    assert "<svg" in text
    assert FAULTY in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_the_tables_end_with_the_advice(faulty: Path, capsys: pytest.CaptureFixture):
    assert exit_code_from(["diagnose", str(faulty)]) == 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert any("products, worst first" in line for line in lines)
    assert any(line.startswith(f"advice: Keep in float: {FAULTY}") for line in lines)
    assert lines[-1].startswith("advice:")


@pytest.mark.parametrize(
    ("precision", "targets", "message"),
    [("int8", ["openvino"], "--target onnx too"), ("fp32", ["onnx"], "Export with --int8")],
)
def test_bundles_without_an_int8_graph_are_refused(
    precision: str, targets: list, message: str, place: Path, tmp_path: Path
):
    changes = sections(place, precision=precision, targets=targets)
    vitdeploy.export(str(place / "model"), output=tmp_path / "other", **changes)
    with pytest.raises(UnsupportedError, match=message):
        vitdeploy.diagnose(tmp_path / "other")


def test_a_rotated_stream_is_compared_in_its_own_coordinates(place: Path, tmp_path: Path):
    rotated = {"onnx": {"rotations": {"blocks.0.norm1/LayerNormalization": 1}}}
    changes = sections(place, int8={"choices": rotated})
    vitdeploy.export(str(place / "model"), output=tmp_path / "bundle", **changes)
    part = only_part(vitdeploy.diagnose(tmp_path / "bundle", calib=str(place / "images")))
    # 8 bits without any fold still give more than 20 dB
    assert min(row.inherited_db for row in part.blocks) > 20
    assert min(row.made_db for row in part.sites if row.made_db is not None) > 20
    before = {row.name: row.before for row in part.norms}
    sound = only_part(vitdeploy.diagnose(place / "bundle", calib=str(place / "images")))
    assert before == pytest.approx({row.name: row.before for row in sound.norms})

    recipe = tmp_path / "bundle/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("LayerNormalization: 1", "LayerNormalization: 2"))
    update_manifest(tmp_path / "bundle", "recipe.yaml")
    part = only_part(vitdeploy.diagnose(tmp_path / "bundle", calib=str(place / "images")))
    # in other coordinates a block's output has nothing to do with FP32's
    assert max(row.inherited_db for row in part.blocks) < 5


def test_other_refusals(place: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="does not exist"):
        vitdeploy.diagnose(tmp_path / "none")
    with pytest.raises(UsageError, match="at least 1 sample"):
        vitdeploy.diagnose(place / "bundle", samples=0)
    with pytest.raises(DataError, match="no images"):
        vitdeploy.diagnose(place / "bundle", calib=str(tmp_path / "none"))
    broken = tmp_path / "broken"
    shutil.copytree(place / "bundle", broken)
    with (broken / "onnx/model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DataError, match="expected sha256"):
        vitdeploy.diagnose(broken)
    assert exit_code_from(["diagnose", str(place / "bundle"), "--html", str(tmp_path)]) == 2
    assert exit_code_from(["diagnose", str(place / "bundle"), "--seconds", "nan"]) == 2


def test_an_artefact_that_gives_nan_is_told(place: Path, tmp_path: Path):
    bundle = tmp_path / "nan"
    shutil.copytree(place / "bundle", bundle)

    def spoil(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.name.endswith("fc1.bias"))
        array = onnx.numpy_helper.to_array(tensor) * np.float32(np.nan)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    rewrite_artefact(bundle, spoil)
    with pytest.raises(DataError, match="NaN or infinite"):
        vitdeploy.diagnose(bundle)
