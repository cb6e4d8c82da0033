"""Output folders: whether one may be written, room on the disk, and putting it in place.

What is inside the folder is not known here (see `bundle`), except how to tell a bundle of ours,
which `--force` may delete, from anything else, which it may not.
"""

import errno
import os
import shutil
from itertools import count
from pathlib import Path

from vitdeploy.errors import DataError, UsageError
from vitdeploy.manifest import MANIFEST_NAME, is_manifest

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
# Native libraries report a failed write as a bare RuntimeError, with no errno. With less than
# this left on the disk, such an error is taken for a full disk.
_FULL_BELOW_BYTES = 1 << 20


def require_free_output(path: Path, *, force: bool) -> None:
    """Return where a bundle can be written at `path`; call it before any work is done.

    Raises:
        UsageError: something is there and `force` is not set, or it is not a bundle of ours and
            so is not deleted; or the folder above cannot be written.
    """
    path = Path(path).resolve()
    above = _existing_ancestor(path.parent)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(
            f"Cannot write the output '{path}': '{above}' is not a folder you may write to. "
            "Choose another with --output."
        )
    if not path.exists():
        return
    if not force:
        raise UsageError(
            f"The output '{path}' exists. Use --force to replace it, or choose another --output."
        )
    empty = path.is_dir() and not any(path.iterdir())
    if not empty and not is_manifest(path / MANIFEST_NAME):
        raise UsageError(
            f"The output '{path}' exists and is not a vitdeploy bundle, so --force does not "
            "delete it. Delete it yourself, or choose another --output."
        )


def require_space(path: Path, size_bytes: int) -> None:
    """Return where the disk that holds (or will hold) `path` has `size_bytes` to spare.

    Raises:
        DataError: it has less.
    """
    free_bytes = _free_bytes(path)
    if free_bytes < size_bytes:
        raise DataError(
            f"disk full: '{path}' needs about {size_bytes / 1e6:.0f} MB and "
            f"{free_bytes / 1e6:.0f} MB are free. Free some space or choose another --output."
        )


def raise_if_full(error: BaseException, path: Path) -> None:
    """Return where `error`, met while writing to `path`, is not due to a full disk.

    Raises:
        DataError: the error, or one that caused it, says that no space is left; or an error of
            another kind came while less than 1 MiB was left.
    """
    if not isinstance(error, Exception):  # Ctrl-C and exit are what they are
        return
    causes = _causes(error)
    told = any(isinstance(cause, OSError) and cause.errno in _NO_SPACE for cause in causes)
    # Other errnos say what they mean; a bare RuntimeError of a native library says nothing.
    silent = any(isinstance(cause, RuntimeError) for cause in causes) and not any(
        isinstance(cause, OSError) for cause in causes
    )
    if told or (silent and _free_bytes(path) < _FULL_BELOW_BYTES):
        raise DataError(
            f"disk full while writing '{path}' ({_free_bytes(path) / 1e6:.1f} MB free). Nothing "
            "was kept. Free some space or choose another --output."
        ) from error


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error and everything that led to it."""
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        link = link.__cause__ or link.__context__
    return causes


def create_sibling(path: Path, purpose: str) -> Path:
    """Return a new, empty, hidden folder beside `path`: `.<name>.<purpose>-<pid>`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        suffix = f"-{number}" if number else ""
        folder = path.with_name(f".{path.name}.{purpose}-{os.getpid()}{suffix}")
        try:
            folder.mkdir()
        except FileExistsError:  # left by a killed process that had our id, or another host's
            continue
        return folder
    raise AssertionError("count() ends")


def replace_folder(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`; what was there is restored on failure, else deleted.

    Raises:
        OSError: a rename failed; `path` is as it was.
        DataError: the new folder is in place, the old one could not be deleted.
    """
    sync_folder(new)
    if not path.exists():
        new.rename(path)
        _sync_path(path.parent)
        return
    aside = create_sibling(path, "old")
    old = aside / path.name
    try:
        path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        if not old.exists():
            aside.rmdir()
        raise
    _sync_path(path.parent)
    try:
        shutil.rmtree(aside)
    except OSError as error:
        raise DataError(
            f"'{path}' is written, but what was there before cannot be deleted: {error}. "
            f"Delete '{aside}' yourself."
        ) from error


def sync_folder(folder: Path) -> None:
    """Return when all files and folders under `folder` are on the disk (fsync)."""
    for path in folder.rglob("*"):
        _sync_path(path)
    _sync_path(folder)


def missing_parents(path: Path) -> tuple[Path, ...]:
    """Return the folders above `path` that do not exist yet, the nearest first."""
    return tuple(parent for parent in path.parents if not parent.exists())


def _sync_path(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _existing_ancestor(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(_existing_ancestor(Path(path).resolve())).free
