"""Checkpoints of a training: written whole or not at all, the newest found, the rest removed.

What is in them is accelerate's affair; here is where they lie and what they belong to.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.errors import DataError, UsageError
from vitdeploy.output import sync_folder

METRICS = "metrics.jsonl"
_PREFIX = "checkpoint-"
_POSITION = "position.json"
_SETTINGS = "settings.json"
_KEPT = 2


@dataclass(frozen=True)
class Position:
    """How far a training is."""

    step: int
    """Optimiser steps done, over all epochs."""
    metrics_bytes: int
    """Length of the metrics when the checkpoint was taken; what follows belongs to later steps."""


def folder_of(output: Path) -> Path:
    """Return where the training towards `output` keeps what it needs to go on."""
    return output.with_name(f"{output.name}.training")


def open_training(folder: Path, settings: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Make the folder of a training, or return where the one that is there can go on.

    Raises:
        UsageError: there is one, and neither `resume` nor `force` is set; or `resume` is, and
            there is none or one with other settings.
    """
    place = folder / _SETTINGS
    if resume:
        if not place.is_file():
            raise UsageError(
                f"--resume: there is no training at '{folder}'. It is kept beside --output until "
                "it ends; check --output, or leave --resume away."
            )
        _require_same(place, settings)
        return
    if folder.exists():
        if not force:
            raise UsageError(
                f"an unfinished training is at '{folder}'. Go on with --resume, or throw it away "
                "with --force."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    place.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def latest(folder: Path) -> tuple[Path, Position] | None:
    """Return the newest whole checkpoint and how far it is; None where there is none."""
    found = sorted(folder.glob(f"{_PREFIX}*/{_POSITION}"))
    if not found:
        return None
    try:
        position = Position(**json.loads(found[-1].read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as e:
        raise DataError(
            f"checkpoint '{found[-1].parent}' cannot be read ({e}). Delete it; --resume then "
            "takes the one before."
        ) from e
    return found[-1].parent, position


def partial_path(folder: Path, step: int) -> Path:
    """Return where a checkpoint is written before it is whole."""
    return folder / f".{_PREFIX}{step:09}.partial"


def complete(folder: Path, position: Position) -> Path:
    """Make the partial checkpoint of a step the newest, and remove older ones; return it."""
    partial = partial_path(folder, position.step)
    text = json.dumps({"step": position.step, "metrics_bytes": position.metrics_bytes})
    (partial / _POSITION).write_text(text, encoding="utf-8")
    sync_folder(partial)
    path = folder / f"{_PREFIX}{position.step:09}"
    if path.exists():  # the same step, computed again after --resume
        shutil.rmtree(path)
    partial.replace(path)
    for older in sorted(folder.glob(f"{_PREFIX}*"))[:-_KEPT]:
        shutil.rmtree(older)
    return path


def append_metrics(folder: Path, row: dict[str, Any]) -> int:
    """Add a line to the metrics; return their length in bytes."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        return file.tell()


def cut_metrics(folder: Path, length: int) -> None:
    """Remove what was written after a checkpoint."""
    path = folder / METRICS
    if path.is_file():
        with path.open("r+b") as file:
            file.truncate(length)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return all rows of the metrics."""
    path = folder / METRICS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _require_same(place: Path, settings: dict[str, Any]) -> None:
    try:
        before = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(
            f"--resume: '{place}' cannot be read ({e}). Begin again with --force."
        ) from e
    now = json.loads(json.dumps(settings))
    changed = _changes(before, now)
    if changed:
        raise UsageError(
            f"--resume: the training at '{place.parent}' was begun with other settings: "
            f"{'; '.join(changed[:5])}. Give the same ones, or begin again with --force."
        )


def _changes(before: Any, now: Any, place: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        rows = []
        for key in dict.fromkeys((*before, *now)):
            rows += _changes(before.get(key), now.get(key), f"{place}.{key}" if place else key)
        return rows
    return [] if before == now else [f"{place} was {before!r}, is {now!r}"]


def remove_partial(folder: Path) -> None:
    """Remove checkpoints that a killed process left half written."""
    for path in folder.glob(f".{_PREFIX}*.partial"):
        shutil.rmtree(path)
