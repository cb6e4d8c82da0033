"""Folders and their config.json."""

import pytest

from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models.reference import Reference, is_folder_name, read_folder_config


def test_both_layouts_are_told_apart(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    assert read_folder_config(tmp_path)[0] == "timm-folder"
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert read_folder_config(tmp_path)[0] == "transformers-folder"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json"),
        ("{", "valid JSON"),
        ("[1]", "must be an object"),
        ('{"a": 1}', "neither 'architecture'"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_bad_folders_are_refused(tmp_path, content, message):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_folder_config(tmp_path)


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        read_folder_config(tmp_path / "nowhere")
    weights = tmp_path / "model.safetensors"
    weights.touch()
    with pytest.raises(UsageError, match=r"--checkpoint model\.safetensors"):
        read_folder_config(weights)


def test_folder_names_look_like_paths():
    assert is_folder_name("./tiny")
    assert is_folder_name("models/tiny")
    assert not is_folder_name("vit-tiny")


def test_the_source_holds_no_machine_path(tmp_path):
    reference = Reference("x", "vit", "timm-folder", str(tmp_path))
    assert reference.source == f"folder:{tmp_path.name}"
