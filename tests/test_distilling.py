"""`vitdeploy distill`: from names to a folder that exports, broken off, divided, and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import vitdeploy
from tests.model_folders import write_images, write_vit_folder
from vitdeploy.bundle import load_bundle
from vitdeploy.cli import exit_code_from
from vitdeploy.cli.distill import arguments_from
from vitdeploy.compress.distill.training import Training
from vitdeploy.data import packaged_path
from vitdeploy.errors import (
    CompressionError,
    DataError,
    ModelError,
    UnsupportedError,
    UsageError,
)
from vitdeploy.models import LoadOptions, load
from vitdeploy.models.pruned import load_pruned

TOKEN = "timm:deit_tiny_distilled_patch16_224"
TINY = ("img_size=32", "patch_size=8", "embed_dim=24", "depth=1", "num_heads=2")
TINY_ARGUMENTS = [part for value in TINY for part in ("--model-arg", value)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distilling")
    write_vit_folder(root / "teacher")
    write_vit_folder(root / "student", seed=3)
    write_images(root / "images")
    write_images(root / "eval", 4, seed=5)
    return root


def command(place: Path, output: Path, *more: str, student: str | None = None) -> list[str]:
    images = ["--data", str(place / "images"), "--eval", str(place / "eval")]
    settings = ["--epochs", "2", "--batch-size", "12", "--quiet", "--output", str(output)]
    return ["distill", student or str(place / "student"), *images, *settings, *more]


def teaching(place: Path) -> tuple[str, str]:
    return "--teacher", str(place / "teacher")


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def test_a_trained_folder_is_a_model_that_exports(place, tmp_path, capsys):
    folder = tmp_path / "trained"
    assert exit_code_from(command(place, folder, *teaching(place), "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    names = ["config.json", "metrics.jsonl", "model.safetensors", "training.html", "training.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert not (tmp_path / "trained.training").exists()
    assert report["top1"] == report["metrics"][-1]["eval_top1"]
    assert len(report["top1_teachers"]) == 1
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == report["metrics"]
    assert {"loss", "label_loss", "distill_loss", "images_per_second"} <= set(rows[-1])
    page = (folder / "training.html").read_text()
    assert "<polyline" in page
    assert "http" not in page
    bundle = tmp_path / "bundle"
    arguments = ["--eval", str(place / "eval"), "--measure-seconds", "0", "--quiet"]
    assert exit_code_from(["export", str(folder), "-o", str(bundle), *arguments]) == 0
    fidelity = json.loads((bundle / "report.json").read_text())["fidelity"]
    top1 = next(row["value"] for row in fidelity if row["metric"] == "top1")
    assert top1 == pytest.approx(report["top1"])  # what training said is what the export does


def test_a_killed_training_goes_on_to_the_same_weights(place, tmp_path):
    """Killed while its third checkpoint is written; mixup and the running mean go on as well."""
    more = (*teaching(place), "--checkpoint-steps", "2", "--ema", "0.9", "--mixup", "0.2")
    assert exit_code_from(command(place, tmp_path / "whole", *more)) == 0
    broken = command(place, tmp_path / "broken", *more)
    code = (
        "import os, signal, sys\n"
        "from vitdeploy.compress.distill import training\n"
        "from vitdeploy.cli import exit_code_from\n"
        "complete, calls = training.complete, []\n"
        "def killed(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return complete(*arguments)\n"
        "training.complete = killed\n"
        "exit_code_from(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *broken], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "broken").exists()
    left = sorted(path.name for path in (tmp_path / "broken.training").glob("checkpoint-*"))
    assert left == ["checkpoint-000000002", "checkpoint-000000003"]
    assert exit_code_from([*broken, "--resume"]) == 0
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken/metrics.jsonl").open()]
    assert steps == [3, 6]


def recipe(place: Path, **training: Any) -> dict[str, Any]:
    """Plain SGD, so that rounding stays rounding: Adam turns tiny gradients into whole steps."""
    settings = {"epochs": 1, "batch_size": 12, "optimizer": "sgd", "lr": 0.05, **training}
    return {
        "model": {"source": str(place / "teacher")},
        "distill": {
            "student": {"source": str(place / "student")},
            "path": str(place / "images"),
            "eval_path": str(place / "eval"),
            "training": settings,
        },
    }


def test_two_processes_train_as_one_does(place, tmp_path):
    """The same pictures in the same steps, their gradients averaged: what accumulating gives."""
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe(place)))
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(recipe(place, accumulation=2)))
    one = ["distill", str(tmp_path / "one.yaml"), "-o", str(tmp_path / "one"), "--quiet"]
    assert exit_code_from(one) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    two = ["distill", str(tmp_path / "two.yaml"), "-o", str(tmp_path / "two"), "--json"]
    done = subprocess.run(
        [*launch, "-m", "vitdeploy", *two],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # one process writes, once
    assert "2 processes train together." in report["notes"]
    single = json.loads((tmp_path / "one/training.json").read_text())
    assert report["top1"] == pytest.approx(single["top1"])
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    begun = weights(place / "student")
    moved = max(float((first[name] - begun[name]).abs().max()) for name in first)
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert moved > 1e-3
    assert apart < 1e-3 * moved  # FP32 sums in another order, over three steps


def test_accumulation_is_one_large_batch(place, tmp_path):
    for name, parts in (("whole", 1), ("parts", 3)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe(place, accumulation=parts)))
        arguments = [str(tmp_path / f"{name}.yaml"), "-o", str(tmp_path / name), "--quiet"]
        assert exit_code_from(["distill", *arguments]) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=1e-4, atol=1e-5)  # FP32 sums


@pytest.mark.parametrize(
    "more",
    [
        ("--distillation-type", "hard", "--tau", "1", "--repeats", "2"),
        ("--distillation-type", "soft", "--alpha", "1", "--features", "1", "--ema", "0.99"),
        ("--distillation-type", "none", "--features", "0.5", "--layer-decay", "0.8"),
        ("--mixup", "0.8", "--cutmix", "1.0", "--clip-grad", "1", "--workers", "1"),
        ("--precision", "bf16", "--auto-augment", "rand-m9-mstd0.5-inc1", "--erasing", "0.2"),
    ],
)
def test_a_student_with_a_token_learns_every_way(place, tmp_path, more):
    folder = tmp_path / "out"
    arguments = (*teaching(place), *TINY_ARGUMENTS, *more, "--epochs", "1")
    assert exit_code_from(command(place, folder, *arguments, student=TOKEN)) == 0
    model = load(LoadOptions(str(folder))).parts[0].module
    assert not model.distilled_training  # the heads are averaged
    features = "--features" in more
    assert (folder / "projections.safetensors").exists() == features
    begun = tmp_path / "begun"
    code = exit_code_from(
        command(place, begun, *arguments, "--lr", "1e-30", "--force", student=TOKEN)
    )
    assert code == 0
    before, after = weights(begun), weights(folder)
    assert all(not torch.equal(before[n], after[n]) for n in before if "blocks.0.mlp" in n)
    token = "head_dist.weight"
    learns_token = "none" not in more
    moved = not torch.equal(before[token], after[token])
    assert moved or not learns_token


def test_a_pruned_student_recovers_and_keeps_its_record(place, tmp_path):
    images = ("--calib", str(place / "images"), "--quiet")
    pruned = tmp_path / "pruned"
    arguments = ["prune", str(place / "teacher"), "--prune-heads", "0.34", *images]
    assert exit_code_from([*arguments, "-o", str(pruned)]) == 0
    folder = tmp_path / "recovered"
    code = exit_code_from(command(place, folder, *teaching(place), student=str(pruned)))
    assert code == 0
    heads = [block.attn.num_heads for block in load_pruned(folder).blocks]
    assert heads == [block.attn.num_heads for block in load_pruned(pruned).blocks]
    assert sum(heads) == 4
    assert not torch.equal(weights(folder)["head.weight"], weights(pruned)["head.weight"])


def test_teachers_that_are_onnx_files_and_several(place, tmp_path, capsys):
    file = tmp_path / "bundle"
    arguments = ["--measure-seconds", "0", "--quiet", "--eval", str(place / "eval")]
    assert exit_code_from(["export", str(place / "teacher"), "-o", str(file), *arguments]) == 0
    two = (*teaching(place), "--teacher", str(file / "onnx/model.onnx"), "--resize-teacher")
    assert exit_code_from(command(place, tmp_path / "out", *two, "--json")) == 0
    found = json.loads(capsys.readouterr().out)["top1_teachers"]
    assert len(found) == 2


def test_an_encoder_learns_features_without_labels(place, tmp_path):
    """CLS token and patches, as of DINOv2: class folders are not read as labels."""
    arguments = ("--distillation-type", "none", "--features", "1", "--resize-teacher")
    folder = tmp_path / "encoder"
    model = "timm:vit_small_patch14_dinov2"
    small = ("--model-arg", "img_size=28", "--model-arg", "embed_dim=24", "--model-arg", "depth=1")
    heads = ("--model-arg", "num_heads=2")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (place / "images").rglob("*.png"):
        shutil.copyfile(path, flat / f"{path.parent.name}-{path.name}")
    rest = ("--data", str(flat), "--epochs", "1", "--batch-size", "12", "--quiet")
    given = (*teaching(place), *arguments, *small, *heads, *rest)
    code = exit_code_from(["distill", model, *given, "-o", str(folder)])
    assert code == 0
    loaded = load(LoadOptions(str(folder)))
    assert loaded.spec.task == "features"
    shapes = {k: v.shape for k, v in load_file(folder / "projections.safetensors").items()}
    assert shapes["0_summary.weight"] == (48, 24)
    assert shapes["0_patches.weight"] == (48, 24)


def test_segment_anythings_encoder_teaches_from_stored_embeddings(tmp_path, capsys):
    """The embeddings of each picture are computed once and used in both epochs."""
    small = ("img_size=128", "embed_dim=24", "depth=1", "num_heads=2")
    arguments = [part for value in small for part in ("--model-arg", value)]
    images = ("--data", str(packaged_path("scenes/calib")), "--epochs", "2", "--batch-size", "8")
    losses = ("--distillation-type", "none", "--features", "1", "--views", "1", "--lr", "2e-3")
    folder = tmp_path / "out"
    given = ["distill", "timm:vit_tiny_patch16_224", "--teacher", "sam-scenes", *arguments]
    assert exit_code_from([*given, *images, *losses, "-o", str(folder)]) == 0
    assert "32 pictures, 1 view(s) each, 1.0 MB" in errors(capsys)
    rows = json.loads((folder / "training.json").read_text())["metrics"]
    assert rows[-1]["feature_loss"] < rows[0]["feature_loss"]
    assert list(load_file(folder / "projections.safetensors")) == [
        "0_patches.bias",
        "0_patches.weight",
    ]


def test_a_store_serves_several_students(place, tmp_path, capsys):
    store = ("--store", str(tmp_path / "store"), "--views", "1")
    assert exit_code_from(command(place, tmp_path / "a", *teaching(place), *store)) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    assert len(files) == 1
    arguments = command(place, tmp_path / "b", *teaching(place), *store, "--lr", "1e-3")
    arguments.remove("--quiet")
    assert exit_code_from(arguments) == 0
    assert "36 pictures, 1 view(s) each" in errors(capsys)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    other = ("--teacher", str(place / "student"), *store)
    assert exit_code_from(command(place, tmp_path / "c", *other)) == DataError.exit_code
    assert "was made for other teachers" in errors(capsys)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_stored_answers_train_as_live_ones(place, tmp_path):
    for name in ("auto", "off"):
        more = (*teaching(place), "--store", name)
        assert exit_code_from(command(place, tmp_path / name, *more)) == 0
    stored, live = weights(tmp_path / "auto"), weights(tmp_path / "off")
    begun = weights(place / "student")
    moved = max(float((live[name] - begun[name]).abs().max()) for name in live)
    apart = sum(float((live[name] - stored[name]).abs().sum()) for name in live)
    total = sum(float((live[name] - begun[name]).abs().sum()) for name in live)
    assert moved > 1e-4
    assert apart < 0.05 * total  # answers are kept in FP16: 5e-4 of each


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ((), UsageError, "needs a teacher: --teacher MODEL"),
        (
            ("--teacher", "vit-digits"),
            CompressionError,
            "3 classes and teacher 'vit-digits' has 10",
        ),
        (("--teacher", "vit-tinny"), ModelError, "Did you mean"),
        (("TEACHER", "--batch-size", "64"), DataError, "do not fill one batch of 64"),
        (("TEACHER", "--batch-size", "9", "--accumulation", "2"), UsageError, "2 equal parts"),
        (("TEACHER", "--batch-size", "9", "--mixup", "1"), UsageError, "must be even"),
        (("TEACHER", "--token"), CompressionError, "has no distillation token"),
        (("TEACHER", "--distillation-type", "none"), UsageError, "nothing is asked"),
        (("TEACHER", "--distillation-type", "warm"), UsageError, "'soft', 'hard' or 'none'"),
        (("TEACHER", "--alpha", "1.5"), UsageError, "less than or equal to 1"),
        (("TEACHER", "--precision", "fp16"), UnsupportedError, "needs a GPU"),
        (("TEACHER", "--resume"), UsageError, "there is no training"),
        (("TEACHER", "--store", "s", "--mixup", "0.5"), UsageError, "store: off"),
        (("TEACHER", "--model-arg", "depth"), UsageError, "NAME=VALUE"),
        (("TEACHER", "--student-from-teacher", "--model-arg", "depth=9"), CompressionError, "only"),
        (("TEACHER", "--lr", "1e30"), CompressionError, "the loss is"),
        (("TEACHER", "--lr", "1e39"), UsageError, "less than or equal to 1000"),
    ],
)
def test_what_cannot_be_asked_for(place, tmp_path, capsys, more, error, message):
    if "fp16" in more and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    given = [part for word in more for part in (teaching(place) if word == "TEACHER" else (word,))]
    assert exit_code_from(command(place, tmp_path / "out", *given)) == error.exit_code
    assert message in errors(capsys)
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_learnt_from(place, tmp_path, capsys):
    one = tmp_path / "one"
    shutil.copytree(place / "images/red", one / "red")
    arguments = command(place, tmp_path / "out", *teaching(place))
    arguments[arguments.index("--data") + 1] = str(one)
    assert exit_code_from(arguments) == DataError.exit_code
    assert "of one class" in errors(capsys)
    arguments[arguments.index("--data") + 1] = str(one / "red")
    assert exit_code_from(arguments) == DataError.exit_code
    assert "has no labels, and 0.5 of the loss is on labels" in errors(capsys)
    (one / "purple").mkdir()
    shutil.copyfile(next((place / "images/red").iterdir()), one / "purple/1.png")
    arguments[arguments.index("--data") + 1] = str(one)
    assert exit_code_from(arguments) == DataError.exit_code
    assert "classes that the model does not have" in errors(capsys)


def test_another_size_is_refused_unless_resized(place, tmp_path, capsys):
    larger = [*TINY_ARGUMENTS, "--model-arg", "img_size=48"]
    arguments = command(place, tmp_path / "out", *teaching(place), *larger, student=TOKEN)
    assert exit_code_from(arguments) == CompressionError.exit_code
    assert "sees 32 x 32 pixels, the student 48 x 48" in errors(capsys)
    arguments.remove("--quiet")
    assert exit_code_from([*arguments, "--resize-teacher", "--force"]) == 0


def test_a_larger_student_is_told(place, tmp_path, capsys):
    wide = ["--model-arg", "embed_dim=96"]
    arguments = command(place, tmp_path / "out", *teaching(place), *wide)
    arguments.remove("--quiet")
    assert exit_code_from([*arguments, "--random-weights"]) == 0
    assert "the student has 0.2" in errors(capsys)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(place, tmp_path, capsys):
    """The rate rises to 1e30: the first steps are sane, and their checkpoint is kept."""
    more = ("--lr", "1e30", "--warmup-epochs", "2", "--checkpoint-steps", "1")
    arguments = command(place, tmp_path / "out", *teaching(place), *more)
    assert exit_code_from(arguments) == CompressionError.exit_code
    message = errors(capsys)
    assert "Last good checkpoint: step" in message
    assert list((tmp_path / "out.training").glob("checkpoint-*"))
    assert exit_code_from(arguments) == UsageError.exit_code
    assert "Go on with --resume, or throw it away with --force" in errors(capsys)
    changed = [word.replace("1e30", "1e-3") for word in arguments]
    assert exit_code_from([*changed, "--resume"]) == UsageError.exit_code
    assert "training.lr was 1e+30, is 0.001" in errors(capsys)
    assert exit_code_from([*changed, "--force"]) == 0


def test_weights_that_are_not_finite_are_no_checkpoint(place, tmp_path, capsys, monkeypatch):
    def poisoned(self: Training, epoch: int, pace: object) -> None:
        if epoch == 1:
            next(self.pupil.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Training, "_judge", poisoned)
    arguments = command(place, tmp_path / "out", *teaching(place))
    assert exit_code_from(arguments) == CompressionError.exit_code
    assert "weights are NaN or infinite" in errors(capsys)
    left = [path.name for path in (tmp_path / "out.training").glob("checkpoint-*")]
    assert left == ["checkpoint-000000003"]


def test_a_recipe_prunes_teaches_and_quantises(place, tmp_path):
    data = {
        "model": {"source": str(place / "teacher")},
        "precision": "int8",
        "calibration": {"path": str(place / "images"), "samples": 6},
        "evaluation": {"path": str(place / "eval")},
        "prune": {"mlp": 0.25, "path": str(place / "images")},
        "distill": {
            "path": str(place / "images"),
            "eval_path": str(place / "eval"),
            "training": {"epochs": 1, "batch_size": 12},
        },
        "int8": {"search_seconds": 0},
        "measure": {"seconds": 0},
    }
    report = vitdeploy.run(vitdeploy.recipe.recipe_from_dict(data), output=tmp_path / "bundle")
    assert any(note.startswith("trained 1 epoch(s): top-1 from") for note in report.notes)
    trained = json.loads((tmp_path / "bundle/training.json").read_text())
    assert len(trained["top1_teachers"]) == 1  # the model as loaded
    assert "training.html" in {path.name for path in (tmp_path / "bundle").iterdir()}
    assert not (tmp_path / "bundle.training").exists()
    assert load_bundle(tmp_path / "bundle").artifacts()
    assert vitdeploy.check(tmp_path / "bundle").passed
    del data["prune"]
    with pytest.raises(UsageError, match="would teach itself"):
        vitdeploy.run(vitdeploy.recipe.recipe_from_dict(data), output=tmp_path / "other")


def test_model_arguments_are_json_or_text():
    found = arguments_from(["depth=3", "drop_path_rate=0.1", "depths=[2,2]", "qk_norm=true", "a=b"])
    assert found == {
        "depth": 3,
        "drop_path_rate": 0.1,
        "depths": [2, 2],
        "qk_norm": True,
        "a": "b",
    }


def test_the_function_does_what_the_command_does(place, tmp_path):
    section = {
        "path": str(place / "images"),
        "eval_path": str(place / "eval"),
        "teachers": [{"source": str(place / "teacher")}],
        "training": {"epochs": 2, "batch_size": 12},
    }
    student = str(place / "student")
    report = vitdeploy.distill(student, tmp_path / "called", distill=section, seed=1)
    assert report.folder == tmp_path / "called"
    assert exit_code_from(command(place, tmp_path / "told", *teaching(place), "--seed", "1")) == 0
    called, told = weights(tmp_path / "called"), weights(tmp_path / "told")
    assert all(torch.equal(called[name], told[name]) for name in called)
    with pytest.raises(UsageError, match="nothing to train"):
        vitdeploy.distill(student, tmp_path / "other")
