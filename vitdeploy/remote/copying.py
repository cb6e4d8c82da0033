"""Which files a device needs of a bundle, and copying only those that it lacks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.remote.session import RemoteSession


@dataclass(frozen=True)
class DeviceFile:
    """A file here, and its place in the job's folder there."""

    source: Path
    place: str
    sha256: str
    size: int


def files_of_artifact(bundle: Bundle, artifact: Artifact, folder: str) -> tuple[DeviceFile, ...]:
    """Return an artefact's files, side by side in `folder`."""
    listed = {bundle.path / entry.path: entry for entry in bundle.manifest.files}
    return tuple(
        DeviceFile(path, f"{folder}/{path.name}", listed[path].sha256, listed[path].bytes)
        for path in artifact.files
    )


def files_of_package(bundle: Bundle, package: str, folder: str) -> tuple[DeviceFile, ...]:
    """Return all files under the bundle's folder `package`, as they lie there, in `folder`."""
    return tuple(
        DeviceFile(
            bundle.path / entry.path,
            folder + entry.path.removeprefix(package),
            entry.sha256,
            entry.bytes,
        )
        for entry in bundle.manifest.files
        if entry.path.startswith(f"{package}/")
    )


def copy_files(
    session: RemoteSession,
    files: Sequence[DeviceFile],
    told: Callable[[int, int], None] | None = None,
) -> int:
    """Put files in place on the device; return how many bytes had to be copied.

    Args:
        session: connected.
        files: what is needed there.
        told: called with (bytes copied, bytes to copy).

    Raises:
        DataError: the disk there has no room, or the connection broke.
    """
    by_hash: Mapping[str, DeviceFile] = {file.sha256: file for file in files}
    sizes = {sha256: file.size for sha256, file in by_hash.items()}
    wanted = [by_hash[sha256] for sha256 in session.ask("missing", sizes=sizes).values["missing"]]
    total = sum(file.size for file in wanted)
    copied = 0
    for file in wanted:
        session.store(file.source, file.sha256, file.size)
        copied += file.size
        if told:
            told(copied, total)
    session.ask("place", files={file.place: file.sha256 for file in files})
    return copied
