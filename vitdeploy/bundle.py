"""A bundle on disk: `Artifact`, writing a folder whole or not at all, loading, verifying.

The models of `manifest.json` are in `manifest`, golden inputs and outputs in `golden`, output
folders and full disks in `output`; what callers need of them can be imported from here. Nothing
here runs a model.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vitdeploy.errors import DataError, UsageError
from vitdeploy.golden import Golden, read_golden, write_golden
from vitdeploy.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    PartEntry,
    TensorEntry,
    read_manifest,
    require_relative,
    sha256_from_file,
)
from vitdeploy.output import (
    create_sibling,
    missing_parents,
    raise_if_full,
    replace_folder,
    require_free_output,
    require_space,
)

__all__ = [
    "Artifact",
    "Bundle",
    "BundleWriter",
    "Golden",
    "Manifest",
    "TensorInfo",
    "load_bundle",
    "read_golden",
    "require_free_output",
    "require_space",
    "sha256_from_file",
    "verify",
    "write_golden",
]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of an artefact; `shape` holds ints and, where dynamic, names."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Artifact:
    """One part of a model, built for one target, on this machine's disk."""

    part: str
    target: str
    precision: str
    """What was really kept: `fp32`, `fp16`, `bf16`, `int8`, `mixed`, `w4a16`, `w4a8`."""
    path: Path
    """Absolute; the file the engine opens."""
    sha256: str
    """Of `path` alone."""
    bytes: int
    """Of all `files` together."""
    parent: str | None
    """SHA-256 of the FP32 ONNX it was made from; None where it is that one."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    settings: Mapping[str, str | int | float | bool]
    """Session settings the runner applies."""
    files: tuple[Path, ...]
    """Every file it consists of, `path` included."""

    @property
    def run_bytes(self) -> int:
        """Size of what a device loads: `path` and the weights beside it, which carry its name."""
        own = (self.path.stem, self.path.name)  # model.xml: model.bin; model.onnx: model.onnx.data
        loaded = (file for file in self.files if file == self.path or file.stem in own)
        return sum(file.stat().st_size for file in loaded)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was loaded; `verify` says whether its files are what they were."""

    path: Path
    manifest: Manifest

    def artifacts(self, target: str | None = None, part: str | None = None) -> tuple[Artifact, ...]:
        """Return the artefacts of `target` and `part`, in the manifest's order; None means all."""
        return tuple(
            _artifact_from_entry(self.path, entry)
            for entry in self.manifest.parts
            if target in (None, entry.target) and part in (None, entry.name)
        )


class BundleWriter:
    """A context manager that makes a bundle appear at `path` whole, or not at all.

    Inside the block files go into a hidden folder beside `path` (`add_file` says where). When the
    block ends well, the files are hashed, the manifest is written, all is synced and the
    folder is renamed into place. When it raises, Ctrl-C included, the folder is removed and what
    was at `path` before is as it was. A `GateError` therefore belongs after the block.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path = Path(path).resolve()
        self.force = force
        self.folder = self.path  # the hidden folder, once entered
        self._head: Manifest | None = None
        self._artifacts: list[Artifact] = []
        self._new_parents: tuple[Path, ...] = ()

    def __enter__(self) -> "BundleWriter":
        """Create the hidden folder.

        Raises:
            UsageError: `path` is taken, or its parent cannot be written.
            DataError: the disk is full.
        """
        require_free_output(self.path, force=self.force)
        self._new_parents = missing_parents(self.path)
        try:
            self.folder = create_sibling(self.path, "partial")
        except OSError as error:
            self._discard()
            raise_if_full(error, self.path)
            raise UsageError(
                f"Cannot create the output '{self.path}': {error.strerror}. "
                "Choose a folder you may write with --output."
            ) from error
        return self

    def add_file(self, relative: str) -> Path:
        """Return where to write the file `relative` (POSIX); its folder exists afterwards.

        Raises:
            ValueError: the path leaves the bundle or is the manifest's.
        """
        if require_relative(relative) == MANIFEST_NAME:
            raise ValueError(f"{MANIFEST_NAME} is written by the BundleWriter itself")
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add_artifact(self, artifact: Artifact) -> None:
        """Put an artefact, all of whose files lie in `folder`, into the manifest's parts."""
        for path in artifact.files:
            path.relative_to(self.folder)  # ValueError: a bug of the caller
        if artifact.path not in artifact.files:
            raise ValueError(f"the files of an artefact must include its path '{artifact.path}'")
        self._artifacts.append(artifact)

    def describe(self, head: Manifest) -> None:
        """Take model, preprocess, label names, stamps and versions from `head`."""
        self._head = head

    def manifest(self) -> Manifest:
        """Return the manifest of the files written so far.

        Raises:
            DataError: a file of an artefact is missing or changed since it was built.
        """
        if self._head is None:
            raise RuntimeError("BundleWriter.describe was not called")
        files = {
            path.relative_to(self.folder).as_posix(): path
            for path in self.folder.rglob("*")
            if path.is_file() and path != self.folder / MANIFEST_NAME
        }
        entries = {name: _entry_from_file(name, files[name]) for name in sorted(files)}
        parts = [_entry_from_artifact(self.folder, item, entries) for item in self._artifacts]
        head = self._head.model_dump(exclude={"parts", "files"})
        return Manifest.model_validate({**head, "parts": parts, "files": list(entries.values())})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Rename the folder into place, or remove it.

        Raises:
            UsageError: something else appeared at `path` meanwhile.
            DataError: the disk is full.
        """
        try:
            if error is not None:
                raise_if_full(error, self.path)
                return
            text = self.manifest().as_json()
            (self.folder / MANIFEST_NAME).write_text(text, encoding="utf-8", newline="\n")
            require_free_output(self.path, force=self.force)
            replace_folder(self.folder, self.path)
        except OSError as failed:
            raise_if_full(failed, self.path)
            raise
        finally:
            self._discard()

    def _discard(self) -> None:
        """Remove what is left of the hidden folder and the empty parents made for it."""
        if self.folder != self.path and self.folder.exists():
            shutil.rmtree(self.folder)
        for parent in self._new_parents:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


def load_bundle(path: Path) -> Bundle:
    """Return the bundle in the folder `path` (its manifest.json will do); hashes are not checked.

    Raises:
        UsageError: there is no bundle.
        DataError: the manifest is damaged.
        UnsupportedError: a newer vitdeploy wrote it.
    """
    folder = Path(path).resolve()
    if folder.name == MANIFEST_NAME and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        seen = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"The bundle '{path}' {seen}. Name the folder that `vitdeploy export` wrote."
        )
    return Bundle(path=folder, manifest=read_manifest(folder / MANIFEST_NAME))


def verify(bundle: Bundle) -> None:
    """Return where every file of the manifest is there and has its hash.

    Raises:
        DataError: files are missing, changed, or links that lead out of the bundle; all are named.
    """
    problems = []
    for entry in bundle.manifest.files:
        path = bundle.path / entry.path
        if not path.resolve().is_relative_to(bundle.path.resolve()):
            problems.append(f"{entry.path}: is a link that leads out of the bundle")
        elif not path.is_file():
            problems.append(f"{entry.path}: missing")
        else:
            try:
                seen = sha256_from_file(path)
            except OSError as error:
                problems.append(f"{entry.path}: unreadable ({error.strerror})")
                continue
            if seen != entry.sha256:
                problems.append(f"{entry.path}: expected sha256 {entry.sha256}, seen {seen}")
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(
            f"The bundle '{bundle.path}' is not what was written:\n{lines}\n"
            "Copy it again from where it was made, or export again."
        )


def _artifact_from_entry(folder: Path, entry: PartEntry) -> Artifact:
    path = folder / entry.path
    return Artifact(
        part=entry.name,
        target=entry.target,
        precision=entry.precision,
        path=path,
        sha256=entry.sha256,
        bytes=entry.total_bytes,
        parent=entry.parent_sha256,
        inputs=tuple(TensorInfo(item.name, item.shape, item.dtype) for item in entry.inputs),
        outputs=tuple(TensorInfo(item.name, item.shape, item.dtype) for item in entry.outputs),
        settings=dict(entry.settings),
        files=(path, *(folder / extra.path for extra in entry.extra_files)),
    )


def _entry_from_file(name: str, path: Path) -> FileEntry:
    return FileEntry(path=name, sha256=sha256_from_file(path), bytes=path.stat().st_size)


def _entry_from_artifact(
    folder: Path, artifact: Artifact, entries: Mapping[str, FileEntry]
) -> PartEntry:
    names = {path: path.relative_to(folder).as_posix() for path in artifact.files}
    for name in names.values():
        if name not in entries:
            raise DataError(
                f"'{name}' of part '{artifact.part}' for {artifact.target} is gone before the "
                "bundle was finished. Something else writes to the output folder."
            )
    own = entries[names[artifact.path]]
    if own.sha256 != artifact.sha256:
        raise DataError(
            f"'{own.path}' changed after it was built: expected sha256 {artifact.sha256}, seen "
            f"{own.sha256}. Something else writes to the output folder."
        )
    return PartEntry(
        name=artifact.part,
        target=artifact.target,
        precision=artifact.precision,
        path=own.path,
        sha256=own.sha256,
        bytes=own.bytes,
        parent_sha256=artifact.parent,
        inputs=tuple(_entry_from_tensor(item) for item in artifact.inputs),
        outputs=tuple(_entry_from_tensor(item) for item in artifact.outputs),
        settings=dict(artifact.settings),
        extra_files=tuple(entries[name] for path, name in names.items() if path != artifact.path),
    )


def _entry_from_tensor(tensor: TensorInfo) -> TensorEntry:
    return TensorEntry(name=tensor.name, shape=tensor.shape, dtype=tensor.dtype)
