"""`vitdeploy quantize`: an ONNX file from elsewhere becomes such a bundle too, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import vitdeploy
from tests.model_folders import write_images
from tests.onnx_files import fix_batch, rename, set_input, write_onnx
from vitdeploy.bundle import load_bundle, read_golden
from vitdeploy.cli import exit_code_from
from vitdeploy.data import Preprocess, load_batches, scan_images
from vitdeploy.errors import ExportError
from vitdeploy.recipe import recipe_from_yaml
from vitdeploy.report import Report, read_report


def classes_of_three(proto: onnx.ModelProto) -> None:
    """Three classes under names of another tool, so that the images' folders are its classes."""
    for tensor in proto.graph.initializer:
        if tensor.name in ("head.weight", "head.bias"):
            array = onnx.numpy_helper.to_array(tensor)[:3]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    del proto.graph.value_info[:]
    rename(proto, "input:0", "Identity")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net.onnx`, `images` and the bundle that `quantize` made of them."""
    root = tmp_path_factory.mktemp("quantize")
    write_images(root / "images")
    write_onnx(root / "net.onnx", classes_of_three)
    code = quantize(root, "--mean", "0.5,0.4,0.3", "--std", "0.25", "--target", "ov")
    assert code == 0
    return root


def quantize(root: Path, *options: str, model: str = "net.onnx", output: str = "bundle") -> int:
    fixed = ["--calib", str(root / "images"), "--eval", str(root / "images")]
    fixed += ["--calib-samples", "12", "--measure-seconds", "0.1", "--target", "onnx", "--quiet"]
    place = ["--output", str(root / output)]
    return exit_code_from(["quantize", str(root / model), *fixed, *place, *options])


@pytest.fixture
def report(place: Path) -> Report:
    return read_report(place / "bundle" / "report.json")


def test_the_report_is_that_of_any_export(report: Report):
    metrics = {(row.target, row.metric) for row in report.fidelity}
    for target in ("onnx", "openvino"):
        assert {(target, m) for m in ("top1", "agreement", "cosine_mean", "sqnr_db")} <= metrics
        assert report.speedup[target] is not None
    assert [row.batch for row in report.parity] == [2, 3]
    assert report.model.family == "onnx"
    assert report.model.source == "onnx:net.onnx"
    assert report.model.gmacs is not None
    assert report.stamps == ()
    for row in report.artifacts:
        assert row.int8_macs_percent is not None
        assert row.int8_macs_percent > 80
    for row in report.fidelity:
        if row.metric == "sqnr_db":
            assert row.value is not None
            assert row.value > 25


def test_the_artefact_keeps_the_names_of_the_file(place: Path):
    model = onnx.load(place / "bundle/onnx/model.onnx")
    assert [value.name for value in model.graph.input] == ["input:0"]
    assert [value.name for value in model.graph.output] == ["Identity"]
    assert "DequantizeLinear" in {node.op_type for node in model.graph.node}


def test_the_reference_is_the_file_itself(place: Path, report: Report):
    """Golden outputs and top-1, computed from the file without any code of ours but `data`."""
    session = ort.InferenceSession(str(place / "net.onnx"), providers=["CPUExecutionProvider"])
    golden = read_golden(load_bundle(place / "bundle").path, "model")
    expected = session.run(None, golden.inputs)[0]
    np.testing.assert_array_equal(golden.outputs["Identity"], expected)
    preprocess = Preprocess((16, 16), (0.5, 0.4, 0.3), (0.25, 0.25, 0.25))
    images = scan_images(place / "images")
    right = 0
    for pixels, indices in load_batches(images, preprocess, 8):
        logits = session.run(None, {"input:0": pixels})[0]
        right += int((logits.argmax(1) == np.asarray(images.labels)[indices]).sum())
    row = next(r for r in report.fidelity if (r.target, r.metric) == ("onnx", "top1"))
    assert row.reference == pytest.approx(100 * right / len(images))


def test_check_and_predict_work_on_the_bundle(place: Path):
    checked = vitdeploy.check(place / "bundle")
    assert checked.passed
    assert {row.metric for row in checked.fidelity} >= {"agreement", "sqnr_db"}
    with vitdeploy.load(place / "bundle", "onnx") as predictor:
        prediction = predictor.predict(next((place / "images/red").iterdir()))
    assert len(prediction.classes) == 3


def test_the_recipe_in_the_bundle_gives_the_same_bytes(place: Path, tmp_path: Path):
    recipe = recipe_from_yaml(place / "bundle/recipe.yaml")
    assert recipe.model.preprocess is not None
    assert recipe.model.preprocess.mean == (0.5, 0.4, 0.3)
    vitdeploy.run(recipe, output=tmp_path / "again")
    for name in ("onnx/model.onnx", "openvino/model.bin", "golden/model.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (place / "bundle" / name).read_bytes()


def test_it_needs_no_torch(place: Path):
    """With torch and what builds on it made unimportable, as where none of them is installed."""
    missing = ("torch", "torchvision", "timm", "transformers")
    options = ["--calib", str(place / "images"), "--measure-seconds", "0", "--quiet"]
    options += ["--output", str(place / "without"), "--target", "onnx", "--target", "openvino"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r})); "
        "from vitdeploy.cli import exit_code_from; "
        f"sys.exit(exit_code_from(['quantize', {str(place / 'net.onnx')!r}, *{options!r}]))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_fixed_batch_is_kept_and_pinned(place: Path):
    write_onnx(place / "two.onnx", lambda p: fix_batch(p, 2))
    assert quantize(place, "--outputs", "logits", model="two.onnx", output="two") != 0  # 5 classes

    def two_images(proto: onnx.ModelProto) -> None:
        classes_of_three(proto)
        fix_batch(proto, 2)

    write_onnx(place / "two.onnx", two_images)
    assert quantize(place, model="two.onnx", output="two") == 0
    assert [row.batch for row in read_report(place / "two/report.json").parity] == [2]
    assert recipe_from_yaml(place / "two/recipe.yaml").export.batch == 2
    assert load_bundle(place / "two").artifacts()[0].inputs[0].shape[0] == 2
    assert vitdeploy.check(place / "two").passed


def test_assumed_preprocessing_is_told(place: Path):
    assert quantize(place, "--max-drop", "50", output="assumed") == 0
    report = read_report(place / "assumed/report.json")
    assert any("ImageNet's mean and std were assumed" in note for note in report.notes)
    assert report.gates[0].name.startswith("max_drop_points")


def test_a_gate_that_fails_leaves_the_bundle_and_exits_with_10(place: Path):
    assert quantize(place, "--min-speedup", "1000", output="slow") == 10
    assert (place / "slow/report.json").is_file()


def test_preprocessing_may_come_from_a_json_file(place: Path, tmp_path: Path):
    file = tmp_path / "preprocess.json"
    file.write_text(json.dumps({"mean": [0, 0, 0], "std": [1, 1, 1], "crop_pct": 0.875}))
    assert quantize(place, "--preprocess", str(file), "--crop-pct", "0.9", output="json") == 0
    section = recipe_from_yaml(place / "json/recipe.yaml").model.preprocess
    assert section is not None
    assert section.std == (1, 1, 1)
    assert section.crop_pct == 0.9  # the flag wins


def test_a_graph_that_differs_from_the_file_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    from vitdeploy import onnx_export

    def wrong(model, *_):
        bias = model.graph.initializers["fc2.bias"]
        import onnx_ir as ir

        bias.const_value = ir.tensor(bias.const_value.numpy() + 0.01, name="fc2.bias")
        return model

    monkeypatch.setattr(onnx_export, "simplified", wrong)
    with pytest.raises(ExportError, match=r"differs from 'net\.onnx' itself at batch 2"):
        vitdeploy.export(
            str(place / "net.onnx"),
            precision="int8",
            calibration={"path": str(place / "images")},
            output=place / "wrong",
        )
    assert not (place / "wrong").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["none.onnx", "--calib", "synthetic"], 3, "no ONNX file"),
        (["net.onnx"], 2, "--calib FOLDER"),
        (["vit-tiny", "--calib", "synthetic"], 2, "no .onnx file"),
        (["net.onnx", "--calib", "nowhere"], 7, "does not exist"),
        (["net.onnx", "--calib", "synthetic", "--mean", "a,b,c"], 2, "--mean is 'a,b,c'"),
        (["net.onnx", "--calib", "synthetic", "--std", "0"], 2, "above 0"),
        (["net.onnx", "--calib", "synthetic", "--interpolation", "cubic"], 2, "interpolation"),
        (["net.onnx", "--calib", "synthetic", "--preprocess", "bad.json"], 2, "unknown key"),
        (["net.onnx", "--calib", "synthetic", "--preprocess", "no.json"], 2, "cannot be read"),
        (["nhwc.onnx", "--calib", "synthetic"], 3, "channels first"),
        (["net.onnx", "--calib", "synthetic", "--output", "bundle"], 2, "--force"),
    ],
)
def test_refusals(
    options: list[str],
    code: int,
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(place)
    (place / "bad.json").write_text('{"meen": [0, 0, 0]}')
    write_onnx(place / "nhwc.onnx", lambda p: set_input(p, ["n", 16, 16, 3]))
    assert exit_code_from(["quantize", *options]) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_same_mistakes_in_a_recipe_are_refused():
    from vitdeploy.errors import UsageError
    from vitdeploy.recipe import recipe_from_dict

    for model, message in (
        ({"source": "vit-tiny", "preprocess": {}}, "for .onnx files"),
        ({"source": "a.onnx", "random_weights": True}, "has its weights"),
        ({"source": "a.onnx", "checkpoint": "w"}, "has its weights"),
        ({"source": "a.onnx", "preprocess": {"std": [1, 0, 1]}}, "above 0"),
        ({"source": "a.onnx", "preprocess": {"meen": [1, 1, 1]}}, "Did you mean 'mean'"),
    ):
        with pytest.raises(UsageError, match=message):
            recipe_from_dict({"model": model})
