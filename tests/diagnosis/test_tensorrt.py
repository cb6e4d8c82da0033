"""Diagnosing TensorRT's artefacts: FP16 taken away, q, k and v apart, what builders fused."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import vitdeploy
from tests.device.packages import device_report, make_package, run_build
from tests.diagnosis.faults import forget_file, rewrite_artefact, shrink_range
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.cli import exit_code_from
from vitdeploy.diagnosis.schema import Diagnosis, PartDiagnosis
from vitdeploy.errors import DataError, UsageError

FAULTY = "blocks.1.mlp.fc1/MatMul"
FUSION = "trt/model.fusion.json"
ATTENTION = {f"blocks.{number}.attn": 0.1 for number in (0, 1)}
# What a search would choose depends on the time it has.
CHOICES = {"onnx": {}, "trt": {"attention_int8": ATTENTION}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `images` and, for ONNX Runtime and TensorRT in INT8, `bundle`."""
    root = tmp_path_factory.mktemp("diagnose_tensorrt")
    write_vit_folder(root / "model")
    write_images(root / "images")
    export(root, "bundle", targets=["onnx", "trt"])
    return root


def export(root: Path, name: str, **changes) -> Path:
    sections = {
        "precision": "int8",
        "calibration": {"path": str(root / "images"), "samples": 12},
        "evaluation": {"path": str(root / "images")},
        "measure": {"seconds": 0},
        "int8": {"choices": CHOICES},
        **changes,
    }
    vitdeploy.export(str(root / "model"), output=root / name, **sections)
    return root / name


@pytest.fixture(scope="module")
def sound(place: Path) -> Diagnosis:
    return diagnosed(place / "bundle", target="trt", calib=str(place / "images"))


def diagnosed(bundle: Path, **options) -> Diagnosis:
    """Without measuring what each product gains, which `test_diagnose` looks at."""
    return vitdeploy.diagnose(bundle, **{"seconds": 0, **options})


def only_part(diagnosis: Diagnosis) -> PartDiagnosis:
    (part,) = diagnosis.parts
    return part


def test_the_first_target_is_read_unless_another_is_asked_for(place: Path, sound: Diagnosis):
    assert diagnosed(place / "bundle").target == "onnx"
    assert sound.target == "trt"
    assert diagnosed(place / "bundle", target="engine").target == "trt"
    with pytest.raises(UsageError, match="has no target 'openvino'; it has onnx, trt"):
        diagnosed(place / "bundle", target="openvino")
    assert exit_code_from(["diagnose", str(place / "bundle"), "--target", "nonsense"]) == 2


def test_q_k_and_v_are_products_of_their_own(sound: Diagnosis):
    part = only_part(sound)
    names = {row.name for row in part.sites if row.is_int8}
    apart = {f"blocks.{n}.attn.qkv.{role}/MatMul" for n in (0, 1) for role in ("query", "value")}
    assert apart | {FAULTY} <= names
    assert all(row.macs is not None for row in part.sites)
    assert [row.name for row in part.blocks] == ["blocks.0", "blocks.1"]
    for row in part.sites:
        if row.is_int8:
            # 8 bits over a bell-shaped range give 35 to 50 dB
            assert row.made_db > 28


def test_int8_and_fp16_are_told_apart(sound: Diagnosis):
    part = only_part(sound)
    # FP16 rounds at 60 dB and more, so it takes a little off what INT8 leaves, and gives nothing.
    assert part.output_db - 6 < part.half_db < part.output_db + 1


def test_a_fault_in_the_strong_graph_is_named(place: Path, sound: Diagnosis):
    bundle = shutil.copytree(place / "bundle", place / "faulty")
    rewrite_artefact(bundle, lambda proto: shrink_range(proto, FAULTY, 4), "trt/model.strong.onnx")
    part = only_part(diagnosed(bundle, target="trt", calib=str(place / "images")))
    assert part.sites[0].name == FAULTY
    assert part.sites[0].clipped_percent > 5
    assert part.output_db < only_part(sound).output_db - 3
    assert part.half_db < only_part(sound).half_db - 3


def test_int8_attention_counts_as_int8(sound: Diagnosis):
    coverage = only_part(sound).coverage
    # 16 + 1 tokens: attention's own products are few beside those with weights
    attention = len(ATTENTION) * 2 * 17 * 17 * 48
    sites = only_part(sound).sites
    in_int8 = sum(row.macs for row in sites if row.is_int8) + attention
    total = sum(row.macs for row in sites) + attention
    assert coverage.all_percent == pytest.approx(100 * in_int8 / total)


def test_what_the_builder_fused_is_shown(
    place: Path, sound: Diagnosis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("tensorrt_rtx", reason="the builder of TensorRT for RTX is not installed")
    written = json.loads((place / "bundle" / FUSION).read_text())
    (row,) = only_part(sound).fusion
    assert row.is_forecast
    assert row.target == "trt"
    for name in ("products", "int8_products", "attention", "fused_attention", "int8_attention"):
        assert getattr(row, name) == written[name] > 0
    page = tmp_path / "d.html"
    command = ["diagnose", str(place / "bundle"), "--target", "trt", "--html", str(page)]
    assert exit_code_from(command) == 0
    shown = f"{row.int8_products} of {row.products}"
    assert shown in page.read_text()
    printed = capsys.readouterr().err
    assert "What the builder fused" in printed
    assert shown in printed


def test_what_fell_back_is_named_with_its_reason(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bundle = shutil.copytree(place / "bundle", tmp_path / "bundle")

    def add_fallback() -> None:
        path = bundle / FUSION
        data = json.loads(path.read_text())
        data["fallbacks"] = [{"name": FAULTY, "reason": "its kernel reads Half"}]
        path.write_text(json.dumps(data))

    add_fallback()
    refresh(bundle, FUSION)
    page = tmp_path / "d.html"
    command = ["diagnose", str(bundle), "--json", "--html", str(page)]
    assert exit_code_from(command) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    (row,) = part["fusion"]
    assert row["fallbacks"] == [{"name": FAULTY, "reason": "its kernel reads Half"}]
    assert "its kernel reads Half" in page.read_text()
    assert exit_code_from(["diagnose", str(bundle)]) == 0
    assert "its kernel reads Half" in capsys.readouterr().err
    (bundle / FUSION).write_text("{}")
    refresh(bundle, FUSION)
    with pytest.raises(DataError, match=r"cannot read 'model\.fusion\.json'"):
        diagnosed(bundle)


def refresh(bundle: Path, name: str) -> None:
    """Bring the manifest's hash of an extra file up to date."""
    from vitdeploy.bundle import sha256_from_file

    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    entries = manifest["files"] + [e for part in manifest["parts"] for e in part["extra_files"]]
    for entry in (entry for entry in entries if entry["path"] == name):
        entry["sha256"] = sha256_from_file(bundle / name)
        entry["bytes"] = (bundle / name).stat().st_size
    path.write_text(json.dumps(manifest))


@pytest.fixture
def without_report(place: Path, tmp_path: Path) -> Path:
    """A bundle that was exported where no builder was installed."""
    bundle = shutil.copytree(place / "bundle", tmp_path / "bundle")
    if (bundle / FUSION).is_file():
        forget_file(bundle, FUSION)
    return bundle


def test_the_builder_is_asked_where_the_export_did_not(without_report: Path, sound: Diagnosis):
    pytest.importorskip("tensorrt_rtx", reason="the builder of TensorRT for RTX is not installed")
    found = only_part(diagnosed(without_report))
    assert found.fusion == only_part(sound).fusion
    assert found.notes == ()


def test_without_a_builder_that_is_said(
    without_report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    part = only_part(diagnosed(without_report))
    assert part.fusion == ()
    (note,) = part.notes
    assert note.startswith("trt: what its builder fuses is not known")
    assert "pip install 'vitdeploy[rtx]'" in note
    assert exit_code_from(["diagnose", str(without_report)]) == 0
    assert "what its builder fuses is not known" in capsys.readouterr().err


def test_a_build_on_the_device_gives_counts_and_times(place: Path, tmp_path: Path):
    """The build is of the stand-in, on a package of its own: it computes no real graph."""
    made = make_package(tmp_path / "trt")
    assert run_build(made).returncode == 0
    bundle = shutil.copytree(place / "bundle", tmp_path / "bundle")
    shutil.copy(made / "device_report.json", bundle / "trt")
    part = only_part(diagnosed(bundle, target="trt"))
    kept = next(
        row
        for row in device_report(made)["parts"][0]["candidates"]
        if row["precision"] == device_report(made)["parts"][0]["chosen"]
    )
    built = part.fusion[0]
    assert built.builder == "TensorRT 10.3.0 on the device"
    assert not built.is_forecast
    assert (built.products, built.int8_products) == (kept["products"], kept["int8_products"])
    assert built.attention is None
    (time,) = [time for time in part.time if time.target == "trt"]
    assert time.total_ms == pytest.approx(sum(row["mean_ms"] for row in kept["layers"]))
    names = {row["name"] for row in kept["layers"] if row["is_product"]}
    assert names
    assert {layer.name for layer in time.layers if layer.is_int8} <= names


def test_graphs_for_tensorrt_8_are_compared_in_the_reference_s_opset(place: Path):
    bundle = export(place, "old", targets=["trt"], export={"trt_version": "8.6"})
    part = only_part(diagnosed(bundle))
    assert part.output_db > 25
    assert part.half_db is None
    assert part.fusion == ()
    assert "not known before the device builds" in part.notes[0]
