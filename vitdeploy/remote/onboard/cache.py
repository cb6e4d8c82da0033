"""Files on the device, by the hash of what is in them; and one folder a job, which goes with it.

<cache>/blobs/<sha256>   stays, so that a second run copies nothing
<cache>/jobs/<pid>-...   the files of one job by name, removed when it ends
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

_CHUNK_BYTES = 1 << 20
_KEPT_DAYS = 30
"""A file that no job has used for so long is removed by the next one."""
_SPARE_BYTES = 64 << 20
"""What must stay free on the disk beside the files copied: engines write there too."""
_SHA256 = re.compile("[0-9a-f]{64}")


class DeviceError(Exception):
    """One clear line for the user; `kind` is `missing`, `disk`, `engine` or `data`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def cache_folder() -> Path:
    """Return where files stay: `$XDG_CACHE_HOME/vitdeploy`, or `~/.cache/vitdeploy`."""
    above = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(above) / "vitdeploy"


class JobFolder:
    """The files of one job; a context manager that removes them, however it ends."""

    def __init__(self, cache: Path) -> None:
        """Create the folder, and remove what dead jobs and old files left.

        Raises:
            DeviceError: nothing can be written there.
        """
        self.cache = cache
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            (cache / "jobs").mkdir(exist_ok=True)
            _remove_dead_jobs(cache / "jobs")
            _remove_old_files(self._blobs)
            name = tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=str(cache / "jobs"))
        except OSError as error:
            raise _disk_error(cache, error) from error
        self.path = Path(name)

    @property
    def _blobs(self) -> Path:
        return self.cache / "blobs"

    def __enter__(self) -> JobFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the job's folder; files by hash stay."""
        shutil.rmtree(str(self.path), ignore_errors=True)

    def missing(self, sizes: Mapping[str, int]) -> list[str]:
        """Return the hashes that are not here.

        Args:
            sizes: bytes by hash.

        Raises:
            DeviceError: the disk has no room for what is missing.
        """
        wanted = [sha256 for sha256, size in sizes.items() if not self._has(sha256, size)]
        needed = sum(sizes[sha256] for sha256 in wanted)
        free = shutil.disk_usage(str(self.cache)).free
        if wanted and free < needed + _SPARE_BYTES:
            raise DeviceError(
                "disk",
                f"'{self.cache}' has {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB are to be "
                f"copied, with {_SPARE_BYTES / 1e6:.0f} MB to spare. Make room, or set "
                "XDG_CACHE_HOME to a larger disk.",
            )
        return wanted

    def _has(self, sha256: str, size: int) -> bool:
        path = self._blob(sha256)
        return path.is_file() and path.stat().st_size == size

    def _blob(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise DeviceError("data", f"'{sha256}' is no SHA-256.")
        return self._blobs / sha256

    def store(self, sha256: str, size: int, stream: IO[bytes]) -> None:
        """Read `size` bytes and keep them under their hash; all are read, whatever happens.

        Raises:
            DeviceError: the disk is full, or they are not what the hash says.
        """
        digest = hashlib.sha256()
        left = size
        partial = self.path / f"{sha256}.partial"
        try:
            with partial.open("wb") as file:
                while left:
                    chunk = stream.read(min(left, _CHUNK_BYTES))
                    if not chunk:
                        raise EOFError("the connection ended within a file")
                    left -= len(chunk)
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise DeviceError("data", f"a file arrived damaged ({sha256[:16]}); try again.")
            partial.replace(self._blob(sha256))
        except OSError as error:
            _drain(stream, left)
            raise _disk_error(self.cache, error) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    def place(self, files: Mapping[str, str]) -> None:
        """Put files into the job's folder: hashes by relative path.

        Raises:
            DeviceError: a path leaves the folder, or nothing can be written.
        """
        for name, sha256 in files.items():
            path = (self.path / name).resolve()
            if self.path.resolve() not in path.parents:
                raise DeviceError("data", f"'{name}' is not inside the job's folder.")
            blob = self._blob(sha256)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.utime(str(blob))
                _link(blob, path)
            except OSError as error:
                raise _disk_error(self.cache, error) from error


def _link(blob: Path, path: Path) -> None:
    """Make `path` the file `blob`, without a copy where the file system has hard links."""
    try:
        os.link(str(blob), str(path))
    except OSError:
        shutil.copyfile(str(blob), str(path))


def _drain(stream: IO[bytes], left: int) -> None:
    while left:
        chunk = stream.read(min(left, _CHUNK_BYTES))
        if not chunk:
            return
        left -= len(chunk)


def _remove_dead_jobs(jobs: Path) -> None:
    """Remove the folders of processes that ended without a chance to do so."""
    for folder in jobs.iterdir():
        process = folder.name.split("-")[0]
        if not process.isdigit():
            continue
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(str(folder), ignore_errors=True)
        except OSError:
            continue  # another user's process: it is alive


def _remove_old_files(blobs: Path) -> None:
    oldest = time.time() - _KEPT_DAYS * 86400
    for path in blobs.iterdir():
        if path.stat().st_mtime < oldest:
            path.unlink()


def _disk_error(cache: Path, error: OSError) -> DeviceError:
    return DeviceError(
        "disk",
        f"cannot write to '{cache}': {error.strerror or error}. Make room there, or set "
        "XDG_CACHE_HOME to a folder you may write.",
    )
