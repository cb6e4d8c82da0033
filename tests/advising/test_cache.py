from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.advising.rows import tried_row
from tests.small_models import loaded_from_part, part_from_module
from vitdeploy.advising.cache import Records, default_work_folder, key_from, weights_sha256
from vitdeploy.advising.schema import Tried
from vitdeploy.errors import UsageError


def test_a_record_is_read_back(tmp_path: Path):
    records = Records(tmp_path / "new")
    tried = Tried(row=tried_row("int8 onnx", 0.5, 0.4), recipe="model: {}")
    key = key_from({"a": 1})
    assert records.read(key) is None
    records.write(key, tried)
    assert records.read(key) == tried
    assert [path.suffix for path in records.folder.iterdir()] == [".json"]


def test_a_damaged_record_is_none(tmp_path: Path):
    records = Records(tmp_path)
    (tmp_path / "ab.json").write_text('{"row": ')
    assert records.read("ab") is None


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--work"):
        Records(tmp_path / "file")


def test_the_key_depends_on_every_fact():
    facts = {"weights": "a", "recipe": "b"}
    assert key_from(facts) == key_from(dict(reversed(facts.items())))
    assert key_from(facts) != key_from({**facts, "recipe": "c"})


def test_weights_are_known_by_their_content():
    def model(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5)).eval()

    first = weights_sha256(loaded_from_part(part_from_module(model(0))))
    assert first == weights_sha256(loaded_from_part(part_from_module(model(0))))
    changed = model(0)
    with torch.no_grad():
        changed[1].bias[3] += 1e-6
    assert first != weights_sha256(loaded_from_part(part_from_module(changed)))


def test_a_file_is_known_by_its_content(tmp_path: Path):
    (tmp_path / "a.onnx").write_bytes(b"one")
    (tmp_path / "b.onnx").write_bytes(b"one")
    part = part_from_module(torch.nn.Identity())
    keys = {
        weights_sha256(loaded_from_part(replace(part, module=None, file=tmp_path / name)))
        for name in ("a.onnx", "b.onnx")
    }
    (tmp_path / "b.onnx").write_bytes(b"two")
    keys.add(weights_sha256(loaded_from_part(replace(part, module=None, file=tmp_path / "b.onnx"))))
    assert len(keys) == 2


def test_records_lie_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_work_folder() == tmp_path / "vitdeploy" / "advise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_work_folder() == tmp_path / ".cache" / "vitdeploy" / "advise"
