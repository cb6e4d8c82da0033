"""Tensors out of TorchScript archives, and archives that want to run something."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from vitdeploy.errors import ModelError
from vitdeploy.models.checkpoint import read_state_dict
from vitdeploy.models.torchscript_archive import is_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


@pytest.fixture
def archive(tmp_path) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).half())
    module[2].weight = nn.Parameter(torch.randn(4, 2).half().t())  # a view with strides
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(module.eval()), path)
    return path, module


def with_pickle(path: Path, data: bytes) -> Path:
    """The archive with another data.pkl."""
    changed = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("data.pkl") else source.read(name))
    return changed


def test_all_tensors_are_read_with_their_types_and_strides(archive):
    path, module = archive
    assert is_torchscript(path)
    found = read_state_dict(path)
    expected = module.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_a_plain_checkpoint_is_no_archive(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"no zip")
    assert not is_torchscript(tmp_path / "a.pt")
    assert not is_torchscript(tmp_path / "b.pt")


class Bomb:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def test_a_pickle_that_calls_something_is_refused(archive, tmp_path):
    victim = tmp_path / "victim"
    path = with_pickle(archive[0], pickle.dumps(Bomb(victim), protocol=2))
    with pytest.raises(
        ModelError, match=r"refused: it is a TorchScript .*names (posix|nt)\.system"
    ):
        read_state_dict(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "data",
    [
        # a tensor past the end of its storage: 8000 numbers of 12
        b"c__torch__\nM\n)\x81}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"K\x04tQK\x00M\x40\x1f\x85K\x01\x85\x89)tRsb.",
        # a storage outside the archive
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x07\x00\x00\x00../0000X\x03\x00\x00"
        b"\x00cpuK\x04tQ.",
        b"K\x01.",  # no module at all
        b"",
    ],
    ids=["past the end", "elsewhere", "no module", "empty"],
)
def test_damaged_archives_are_refused(archive, data):
    with pytest.raises(ModelError):
        read_state_dict(with_pickle(archive[0], data))


def test_a_truncated_archive_is_refused(archive):
    path, _ = archive
    cut = path.with_name("cut.pt")
    cut.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match="truncated or not a checkpoint"):
        read_state_dict(cut)


def test_the_code_is_not_opened(archive):
    path, module = archive
    changed = path.with_name("code.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            code = "/code/" in name
            target.writestr(name, io.BytesIO(b"import os").read() if code else source.read(name))
    assert set(read_state_dict(changed)) == set(module.state_dict())
