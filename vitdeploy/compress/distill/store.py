"""`TeacherStore`: teachers' answers on disk, by picture and view, computed once (arXiv 2207.10666).

A folder with `store.json`, which says what it was made for, and one safetensors file in FP16 for
each view and run of pictures. A file is there whole or not at all, so filling it goes on where it
was broken off.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vitdeploy.compress.distill.answers import Answers
from vitdeploy.compress.distill.pictures import Look
from vitdeploy.errors import DataError
from vitdeploy.output import require_space

_RECORD = "store.json"
_SHARD_BYTES = 64 << 20
_MOST_IN_SHARD = 4096
_BYTES = 2  # FP16
_OPEN_SHARDS = 64
_KEY = "{teacher}.{kind}"


@dataclass(frozen=True)
class StoreRecord:
    """What a store was made for; another teacher or other pictures need another store."""

    teachers: tuple[str, ...]
    """SHA-256 of the weights of each."""
    shapes: tuple[dict[str, tuple[int, ...]], ...]
    """By teacher and kind: the shape of one picture's answers."""
    pictures: str
    """SHA-256 of the names, sizes and labels of the picture files, in order."""
    count: int
    augmentation: str
    """What makes a view: the transform's settings and the pixels' preprocessing, as JSON."""
    seed: int

    @property
    def bytes_per_look(self) -> int:
        """Bytes of all answers on one view of one picture."""
        sizes = [math.prod(shape) for by_kind in self.shapes for shape in by_kind.values()]
        return _BYTES * sum(sizes)

    @property
    def shard(self) -> int:
        """Pictures of one file."""
        return max(1, min(_MOST_IN_SHARD, _SHARD_BYTES // self.bytes_per_look))


class TeacherStore:
    """Answers by look, in a folder.

    Raises:
        DataError: the folder holds a store that was made for something else, or other files.
    """

    def __init__(self, folder: Path, record: StoreRecord, views: int) -> None:
        self.folder = folder
        self.record = record
        self.views = views
        self._require_ours()
        self._shard = lru_cache(_OPEN_SHARDS)(self._read_shard)

    def create(self) -> None:
        """Write the folder and what it is for, where that is not there; one process does this."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_whole(
            self.folder / _RECORD,
            lambda path: path.write_text(json.dumps(asdict(self.record), indent=2) + "\n"),
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole store once it is filled."""
        return self.record.bytes_per_look * self.record.count * self.views

    def missing(self) -> list[tuple[int, int]]:
        """Return (view, shard) of what is not computed yet."""
        shards = -(-self.record.count // self.record.shard)
        every = ((view, shard) for view in range(self.views) for shard in range(shards))
        return [place for place in every if not self._path(*place).is_file()]

    def require_space(self) -> None:
        """Raise DataError where the disk lacks room for what is missing."""
        share = len(self.missing()) * self.record.shard * self.record.bytes_per_look
        require_space(self.folder, min(share, self.size_bytes))

    def looks(self, view: int, shard: int) -> list[Look]:
        """Return the looks of one file, in its order."""
        first = shard * self.record.shard
        last = min(first + self.record.shard, self.record.count)
        return [(index, view) for index in range(first, last)]

    def write(self, view: int, shard: int, batches: Iterable[list[Answers]]) -> None:
        """Write one file: for each batch of its looks, every teacher's answers."""
        from safetensors.torch import save_file

        rows: dict[str, list[torch.Tensor]] = {}
        for answers in batches:
            for number, by_kind in enumerate(answers):
                for kind, value in by_kind.items():
                    key = _KEY.format(teacher=number, kind=kind)
                    rows.setdefault(key, []).append(value.to(torch.float16).cpu())
        content = {key: torch.cat(values).contiguous() for key, values in rows.items()}
        path = self._path(view, shard)
        path.parent.mkdir(exist_ok=True)
        _write_whole(path, lambda partial: save_file(content, partial))

    def read(self, indices: list[int], views: list[int], device: Any) -> list[Answers]:
        """Return every teacher's answers on the looks, in float32 on `device`."""
        looks = list(zip(indices, views, strict=True))
        found: list[Answers] = []
        for number, shapes in enumerate(self.record.shapes):
            by_kind = {}
            for kind in shapes:
                key = _KEY.format(teacher=number, kind=kind)
                rows = [self._row(key, index, view) for index, view in looks]
                by_kind[kind] = torch.stack(rows).to(device, torch.float32)
            found.append(by_kind)
        return found

    def _row(self, key: str, index: int, view: int) -> torch.Tensor:
        shard, place = divmod(index, self.record.shard)
        return self._shard(view, shard)[key][place]

    def _read_shard(self, view: int, shard: int) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(view, shard)
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as e:
            raise DataError(
                f"teacher outputs '{path}' cannot be read ({e}). Delete this file; the next run "
                "computes it again and keeps the others."
            ) from e

    def _path(self, view: int, shard: int) -> Path:
        return self.folder / f"view-{view:04}" / f"shard-{shard:05}.safetensors"

    def _require_ours(self) -> None:
        place = self.folder / _RECORD
        if not place.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise DataError(
                    f"'{self.folder}' is no store of teacher outputs and not empty. Give --store "
                    "a new folder."
                )
            return
        try:
            seen = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise DataError(f"'{place}' cannot be read ({e}). Give --store a new folder.") from e
        wanted = json.loads(json.dumps(asdict(self.record)))
        other = [name for name in wanted if seen.get(name) != wanted[name]]
        if other:
            raise DataError(
                f"the store '{self.folder}' was made for other {', '.join(other)}: "
                f"{_shown(seen.get(other[0]))}, and this run has {_shown(wanted[other[0]])}. "
                "Nothing of it was changed. Give --store a new folder, or the same teachers, "
                "pictures, augmentation and seed."
            )


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    partial.replace(path)
