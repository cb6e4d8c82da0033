"""A bundle appears whole or not at all, and says which of its files is not what was written."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vitdeploy import bundle as bundle_module
from vitdeploy import output
from vitdeploy.bundle import Artifact, BundleWriter, TensorInfo, load_bundle, verify
from vitdeploy.errors import DataError, UnsupportedError, UsageError
from vitdeploy.manifest import Manifest, ModelEntry

HEAD = Manifest(
    model=ModelEntry(
        name="vit-digits", family="vit", source="package", task="classification", weights="packaged"
    ),
    preprocess={"size": [32, 32], "mean": [0.5, 0.5, 0.5]},
    label_names=("0", "1"),
    stamps=("calibration: generic",),
    versions={"vitdeploy": "0.1.0"},
)
PARENT = hashlib.sha256(b"parent").hexdigest()


def add_openvino(writer: BundleWriter, body: bytes = b"<xml/>") -> Artifact:
    xml = writer.add_file("openvino/model.xml")
    xml.write_bytes(body)
    weights = writer.add_file("openvino/model.bin")
    weights.write_bytes(b"weights")
    artifact = Artifact(
        part="model",
        target="openvino",
        precision="int8",
        path=xml,
        sha256=hashlib.sha256(body).hexdigest(),
        bytes=len(body) + 7,
        parent=PARENT,
        inputs=(TensorInfo("pixel_values", ("batch", 3, 32, 32)),),
        outputs=(TensorInfo("logits", ("batch", 10)),),
        settings={"INFERENCE_PRECISION_HINT": "f32", "threads": 2, "pinned": True, "scale": 1.0},
        files=(xml, weights),
    )
    writer.add_artifact(artifact)
    return artifact


def write(path: Path, *, force: bool = False, body: bytes = b"<xml/>") -> Artifact:
    with BundleWriter(path, force=force) as writer:
        artifact = add_openvino(writer, body)
        writer.add_file("recipe.yaml").write_text("model: vit-digits\n")
        writer.describe(HEAD)
    return artifact


def write_with(path: Path, body: Callable[[BundleWriter], object], *, force: bool = False) -> None:
    with BundleWriter(path, force=force) as writer:
        writer.describe(HEAD)
        body(writer)


def raising(error: BaseException) -> Callable[[BundleWriter], None]:
    def body(writer: BundleWriter) -> None:
        add_openvino(writer, b"new")
        raise error

    return body


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edit_manifest(path: Path, change) -> None:
    file = path / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_what_was_written_is_loaded_and_verified(tmp_path):
    built = write(tmp_path / "out")
    bundle = load_bundle(tmp_path / "out")
    verify(bundle)
    (loaded,) = bundle.artifacts("openvino", "model")
    root = tmp_path / "out"
    assert loaded.path == root / "openvino/model.xml"
    assert loaded.files == (root / "openvino/model.xml", root / "openvino/model.bin")
    for name in ("part", "target", "precision", "sha256", "bytes", "parent", "inputs", "outputs"):
        assert getattr(loaded, name) == getattr(built, name)
    assert loaded.settings == built.settings
    assert [type(value) for value in loaded.settings.values()] == [str, int, bool, float]
    assert bundle.manifest.preprocess == HEAD.preprocess
    assert bundle.artifacts("onnx") == ()
    assert [entry.path for entry in bundle.manifest.files] == [
        "openvino/model.bin",
        "openvino/model.xml",
        "recipe.yaml",
    ]
    assert names(tmp_path) == ["out"]


def test_the_manifest_itself_and_a_link_to_the_bundle_are_accepted(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert load_bundle(tmp_path / "out" / "manifest.json").path == tmp_path / "out"
    verify(load_bundle(tmp_path / "link"))


def test_a_moved_bundle_is_still_whole_and_names_no_machine_path(tmp_path):
    write(tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    bundle = load_bundle(tmp_path / "elsewhere")
    verify(bundle)
    assert bundle.artifacts()[0].path.is_file()
    assert str(tmp_path) not in (tmp_path / "elsewhere" / "manifest.json").read_text()


def test_equal_content_gives_an_equal_manifest(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    first, second = (tmp_path / name / "manifest.json" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_nothing_stays_when_the_block_raises(tmp_path, error):
    with pytest.raises(type(error)):
        write_with(tmp_path / "new" / "deep" / "out", raising(error))
    assert names(tmp_path) == []


def test_what_was_there_stays_when_a_forced_write_raises(tmp_path):
    write(tmp_path / "out", body=b"old")
    with pytest.raises(KeyboardInterrupt):
        write_with(tmp_path / "out", raising(KeyboardInterrupt()), force=True)
    verify(load_bundle(tmp_path / "out"))
    assert (tmp_path / "out/openvino/model.xml").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_force_replaces_the_old_bundle_whole(tmp_path):
    write(tmp_path / "out", body=b"old")
    (tmp_path / "out" / "stale.txt").write_text("from before")
    write(tmp_path / "out", force=True, body=b"new")
    verify(load_bundle(tmp_path / "out"))
    assert (tmp_path / "out/openvino/model.xml").read_bytes() == b"new"
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_bundle_is_restored_when_a_rename_fails(tmp_path, monkeypatch, failing):
    write(tmp_path / "out", body=b"old")
    rename = Path.rename
    calls = []

    def fail(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.EIO, "no rename today")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no rename today"):
        write(tmp_path / "out", force=True, body=b"new")
    monkeypatch.undo()
    verify(load_bundle(tmp_path / "out"))
    assert (tmp_path / "out/openvino/model.xml").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_an_interrupt_while_finishing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "sha256_from_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out")
    assert names(tmp_path) == []


def test_an_existing_output_is_refused_before_the_block_runs(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"out' exists. Use --force"):
        BundleWriter(tmp_path / "out").__enter__()
    write(tmp_path / "out", force=True)  # empty: force takes it
    assert UsageError.exit_code == 2


@pytest.mark.parametrize("manifest", [None, "{}", "[1]", "not json", '{"format": "crx"}'])
def test_force_does_not_delete_what_is_not_a_bundle(tmp_path, manifest):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    with pytest.raises(UsageError, match="is not a vitdeploy bundle, so --force does not"):
        write(out, force=True)
    assert (out / "thesis.tex").read_text() == "years of work"
    assert names(tmp_path) == ["out"]


def test_a_file_at_the_output_or_above_it_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is not a vitdeploy bundle"):
        write(tmp_path / "file", force=True)
    with pytest.raises(UsageError, match="is not a folder you may write to"):
        write(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "x"


def test_something_that_appeared_meanwhile_is_not_overwritten(tmp_path):
    def appear(writer):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "other").write_text("x")

    with pytest.raises(UsageError, match="exists"):
        write_with(tmp_path / "out", appear)
    assert names(tmp_path / "out") == ["other"]
    assert names(tmp_path) == ["out"]


def test_the_folder_of_a_killed_process_is_not_reused(tmp_path):
    with BundleWriter(tmp_path / "out") as writer:
        left = writer.folder.name
        writer.describe(HEAD)
    (tmp_path / left).mkdir()
    write(tmp_path / "out", force=True)
    assert names(tmp_path) == [left, "out"]


def test_a_full_disk_is_a_data_error_also_as_a_cause(tmp_path):
    with pytest.raises(DataError, match="disk full while writing"):
        write_with(tmp_path / "out", raising(OSError(errno.ENOSPC, "No space left on device")))
    error = RuntimeError("save failed")
    error.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    with pytest.raises(DataError, match="disk full"):
        write_with(tmp_path / "out", raising(error))
    assert names(tmp_path) == []
    assert DataError.exit_code == 7


def test_a_full_disk_while_finishing_is_a_data_error(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output, "sync_folder", fail)
    with pytest.raises(DataError, match="disk full"):
        write(tmp_path / "out")
    assert names(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError):
        write_with(tmp_path / "out", raising(PermissionError(errno.EACCES, "denied")))


def test_a_file_may_not_leave_the_bundle(tmp_path):
    with pytest.raises(ValueError, match="not a relative POSIX path"):
        write_with(tmp_path / "out", lambda writer: writer.add_file("../stray"))
    with pytest.raises(ValueError, match="written by the BundleWriter"):
        write_with(tmp_path / "out", lambda writer: writer.add_file("manifest.json"))


def test_an_artifact_from_elsewhere_or_changed_since_is_refused(tmp_path):
    write(tmp_path / "other")
    (foreign,) = load_bundle(tmp_path / "other").artifacts()
    with pytest.raises(ValueError, match="subpath"):
        write_with(tmp_path / "out", lambda writer: writer.add_artifact(foreign))
    with pytest.raises(DataError, match="changed after it was built"):
        write_with(tmp_path / "out", lambda writer: add_openvino(writer).path.write_bytes(b"other"))
    with pytest.raises(DataError, match=r"model.bin.*is gone"):
        write_with(tmp_path / "out", lambda writer: add_openvino(writer).files[1].unlink())
    assert names(tmp_path) == ["other"]


def test_verify_names_every_bad_file_with_both_digests(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out/openvino/model.bin").write_bytes(b"weightz")
    (tmp_path / "out/recipe.yaml").unlink()
    with pytest.raises(DataError) as caught:
        verify(load_bundle(tmp_path / "out"))
    message = str(caught.value)
    expected = hashlib.sha256(b"weights").hexdigest()
    seen = hashlib.sha256(b"weightz").hexdigest()
    assert f"openvino/model.bin: expected sha256 {expected}, seen {seen}" in message
    assert "recipe.yaml: missing" in message


def test_verify_refuses_a_link_that_leads_out(tmp_path):
    write(tmp_path / "out")
    shutil.move(tmp_path / "out/recipe.yaml", tmp_path / "recipe.yaml")
    (tmp_path / "out/recipe.yaml").symlink_to(tmp_path / "recipe.yaml")
    with pytest.raises(DataError, match="leads out of the bundle"):
        verify(load_bundle(tmp_path / "out"))


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../b", "C:\\x", "a\\b", "", "."]
)
def test_a_path_that_leaves_the_bundle_is_refused(tmp_path, path):
    write(tmp_path / "out")
    edit_manifest(tmp_path / "out", lambda data: data["files"][2].update(path=path))
    with pytest.raises(DataError, match=r"files\.2\.path"):
        load_bundle(tmp_path / "out")


def test_a_part_whose_file_is_not_listed_is_refused(tmp_path):
    write(tmp_path / "out")
    edit_manifest(tmp_path / "out", lambda data: data["files"].pop(0))
    with pytest.raises(DataError, match=r"model\.bin', which is not in files"):
        load_bundle(tmp_path / "out")


def test_a_newer_schema_is_unsupported_and_a_new_field_is_not(tmp_path):
    write(tmp_path / "out")
    edit_manifest(tmp_path / "out", lambda data: data.update(from_the_future=1))
    verify(load_bundle(tmp_path / "out"))
    edit_manifest(tmp_path / "out", lambda data: data.update(schema_version=2))
    with pytest.raises(UnsupportedError, match="schema_version 2; this vitdeploy reads up to 1"):
        load_bundle(tmp_path / "out")


@pytest.mark.parametrize("text", ["", '{"format":', "\xff\xfe", "[" * 100_000])
def test_an_unreadable_manifest_is_a_data_error(tmp_path, text):
    write(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="Cannot read the manifest"):
        load_bundle(tmp_path / "out")


def test_a_foreign_manifest_is_a_data_error(tmp_path):
    (tmp_path / "manifest.json").write_text('{"manifest_version": 3}')
    with pytest.raises(DataError, match="not a manifest of vitdeploy"):
        load_bundle(tmp_path)


def test_no_bundle_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"has no manifest\.json"):
        load_bundle(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is not a folder"):
        load_bundle(tmp_path / "file")
