"""Checkpoints: read safely, or refused with the reason."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitdeploy.errors import ModelError
from vitdeploy.models.checkpoint import (
    check_finite,
    find_weights,
    load_strictly_,
    read_state_dict,
    shorten,
)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def weights() -> dict[str, torch.Tensor]:
    return nn.Linear(3, 2).state_dict()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrappers_and_prefixes_are_removed(tmp_path, wrapper, prefix):
    expected = weights()
    content: object = {prefix + key: value for key, value in expected.items()}
    if wrapper is not None:
        content = {wrapper: content, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "a.pth")
    found = read_state_dict(tmp_path / "a.pth")
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_average_of_training_is_preferred(tmp_path):
    both = {"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}
    torch.save(both, tmp_path / "a.pt")
    assert read_state_dict(tmp_path / "a.pt")["a"].item() == 1


def test_safetensors_are_read(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors")
    assert set(read_state_dict(tmp_path / "a.safetensors")) == {"weight", "bias"}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "bare pickle"])
def test_a_pickle_bomb_is_refused_and_does_not_go_off(tmp_path, legacy):
    victim = tmp_path / "victim"
    bomb = {"weight": torch.zeros(1), "payload": Bomb(victim)}
    if legacy:
        (tmp_path / "bomb.bin").write_bytes(pickle.dumps({"payload": Bomb(victim)}))
    else:
        torch.save(bomb, tmp_path / "bomb.bin")
    named = "" if legacy else r" \((posix|nt)\.system\)"
    with pytest.raises(ModelError, match=f"refused.*{named}.*could run code") as refusal:
        read_state_dict(tmp_path / "bomb.bin")
    assert refusal.value.exit_code == 3
    assert not victim.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.98])
def test_truncated_files_are_refused(tmp_path, suffix, kept):
    file = tmp_path / f"a{suffix}"
    tensors = {"weight": torch.randn(64, 64)}
    save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ModelError, match="truncated or not a checkpoint"):
        read_state_dict(file)


def test_text_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError):
        read_state_dict(tmp_path / "a.pth")


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        read_state_dict(tmp_path / "a.pth")
    with pytest.raises(ModelError, match="is a folder"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 1}, torch.zeros(2)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="not a state dict"):
        read_state_dict(tmp_path / "a.pth")


def test_loading_needs_every_key_and_shape():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    good = {key: value + 1 for key, value in model.state_dict().items()}
    del good["1.num_batches_tracked"]  # absent in files of torch < 0.4.1
    load_strictly_(model, good, "x")
    assert torch.equal(model.state_dict()["0.bias"], good["0.bias"])

    bad = dict(good, extra=torch.zeros(1))
    bad["0.weight"] = torch.zeros(3, 2)
    del bad["0.bias"]
    before = model.state_dict()["0.weight"].clone()
    with pytest.raises(ModelError) as refusal:
        load_strictly_(model, bad, "checkpoint 'x.pth'")
    message = str(refusal.value)
    assert "1 missing (0.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "0.weight: (3, 2) in the checkpoint, (2, 3) in the model" in message
    assert torch.equal(model.state_dict()["0.weight"], before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value):
    bad = weights()
    bad["bias"][0] = value
    with pytest.raises(ModelError, match=r"1 tensors \(bias\)"):
        check_finite(bad, "x")


def test_long_lists_are_shortened():
    assert shorten(str(i) for i in range(12)).endswith("8, 9, and 2 more")


def test_the_weight_file_of_a_folder(tmp_path):
    with pytest.raises(ModelError, match="Found: none"):
        find_weights(tmp_path)
    (tmp_path / "mine.pth").touch()
    assert find_weights(tmp_path).name == "mine.pth"
    (tmp_path / "other.pth").touch()
    with pytest.raises(ModelError, match=r"Found: mine\.pth, other\.pth"):
        find_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path).name == "model.safetensors"
