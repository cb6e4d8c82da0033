"""What a teacher said is kept whole, is read back, and is never mixed with another teacher's."""

import dataclasses
from pathlib import Path

import pytest
import torch

from vitdeploy.compress.distill.store import StoreRecord, TeacherStore
from vitdeploy.errors import DataError

RECORD = StoreRecord(
    teachers=("a" * 64,),
    shapes=({"logits": (5,), "patches": (2, 2, 3)},),
    pictures="p",
    count=5000,
    augmentation="{}",
    seed=0,
)


def answers(looks: list[tuple[int, int]]) -> list[dict[str, torch.Tensor]]:
    """Numbers that tell their look: index + view / 8, exact in FP16 for these indices."""
    value = torch.tensor([index % 100 + view / 8 for index, view in looks])
    logits = value[:, None].expand(-1, 5)
    return [{"logits": logits, "patches": value[:, None, None, None].expand(-1, 2, 2, 3)}]


def filled(folder: Path, views: int = 2) -> TeacherStore:
    store = TeacherStore(folder, RECORD, views)
    store.create()
    for place in store.missing():
        looks = store.looks(*place)
        store.write(*place, (answers(looks[i : i + 64]) for i in range(0, len(looks), 64)))
    return store


def test_what_was_written_is_read(tmp_path):
    store = filled(tmp_path / "store")
    assert store.missing() == []
    found = store.read([4999, 7, 4096], [1, 0, 1], "cpu")
    assert found[0]["logits"].dtype == torch.float32
    assert found[0]["logits"][:, 0].tolist() == [99.125, 7.0, 96.125]
    assert found[0]["patches"].shape == (3, 2, 2, 3)


def test_the_size_is_known_before(tmp_path):
    store = TeacherStore(tmp_path / "store", RECORD, 2)
    assert store.size_bytes == 2 * 5000 * 2 * (5 + 12)
    written = filled(tmp_path / "store")
    files = list(written.folder.rglob("*.safetensors"))
    assert len(files) == 4  # two views, 4096 pictures a file
    size = sum(file.stat().st_size for file in files)
    assert store.size_bytes < size < store.size_bytes + 1000  # headers


def test_filling_goes_on_where_it_stopped(tmp_path):
    store = TeacherStore(tmp_path / "store", RECORD, 1)
    store.create()
    looks = store.looks(0, 0)

    def broken():
        yield answers(looks[:64])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(0, 0, broken())
    assert store.missing() == [(0, 0), (0, 1)]
    store.write(0, 1, [answers(store.looks(0, 1))])
    again = TeacherStore(tmp_path / "store", RECORD, 2)  # more views of the same
    assert again.missing() == [(0, 0), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": ("b" * 64,)}, "other teachers"),
        ({"count": 4}, "other count"),
        ({"seed": 1}, "other seed"),
        ({"shapes": ({"logits": (5,)},)}, "other shapes"),
    ],
)
def test_a_store_of_another_run_is_refused_and_kept(tmp_path, change, message):
    store = filled(tmp_path / "store", 1)
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=message):
        TeacherStore(store.folder, dataclasses.replace(RECORD, **change), 1)
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="no store of teacher outputs and not empty"):
        TeacherStore(tmp_path, RECORD, 1)


def test_a_damaged_file_is_named(tmp_path):
    store = filled(tmp_path / "store", 1)
    path = next(iter(sorted(store.folder.rglob("*.safetensors"))))
    path.write_bytes(path.read_bytes()[:100])
    fresh = TeacherStore(tmp_path / "store", RECORD, 1)
    with pytest.raises(DataError, match=f"{path.name}.*Delete this file"):
        fresh.read([0], [0], "cpu")


def test_a_full_disk_is_told_before(tmp_path):
    large = dataclasses.replace(RECORD, shapes=({"patches": (64, 64, 256)},), count=10**6)
    with pytest.raises(DataError, match="disk full"):
        TeacherStore(tmp_path / "store", large, 1).require_space()
