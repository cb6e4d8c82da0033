"""`scan_images`: an image set from a folder, a folder of class folders, or a list file.

Only names are read here; the images themselves are opened by `image_set`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.data.image_set import ImageSet
from vitdeploy.errors import DataError, suggest

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif",
)  # fmt: skip
LIST_SUFFIXES = (".txt", ".csv")

_ADVICE = (
    "Give a folder of images, a folder with one folder per class, "
    "or a list (.txt or .csv) with 'path' or 'path,label' lines."
)
_ENDING = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
# The path ends at the first image suffix that a separator or the end of the line follows, so
# paths and labels may both hold spaces and commas.
_LINE = re.compile(
    rf"""^"?(?P<path>.+?(?:{_ENDING}))"?(?:\s*[,;\t ]\s*"?(?P<label>[^"]*?)"?)?$""", re.I
)
_SYNSET = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


def scan_images(
    path: str | Path, label_names: Sequence[str] = (), num_classes: int | None = None
) -> ImageSet:
    """Return the images under `path`, sorted, with their labels where there are any.

    `path` is a folder of images (unlabelled), a folder with one folder per class, or a list
    file with a path and perhaps a label per line, paths relative to the file.

    The names of the classes are, in this order: among the model's `label_names`; class indices
    ("0", "17"); ImageNet-1k synsets (n01440764), where the model has 1000 classes; or, where
    the model names no classes, numbered in sorted order. `num_classes` is that of the model,
    if known: then a set that does not fit is refused.

    Raises:
        DataError: there is nothing at `path`, no image in it, or its classes are not the model's.
    """
    path = Path(path)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"no images at {path}: it does not exist.{suggest(path.name, siblings)}")
    count = len(label_names) if label_names and num_classes is None else num_classes
    classes = _Classes(tuple(label_names), count)
    name = path.resolve().name
    if path.is_dir():
        return _scan_folder(path, name, classes)
    if path.suffix.lower() in LIST_SUFFIXES:
        return _read_list(path, name, classes)
    raise DataError(f"{path} is neither a folder nor a list of images. {_ADVICE}")


@dataclass(frozen=True)
class _Classes:
    """What is known of a model's classes; turns the names found in a data set into indices."""

    names: tuple[str, ...]
    """Empty where the model has none."""
    count: int | None

    def resolve(self, found: Sequence[str], where: Path) -> tuple[dict[str, int], tuple[str, ...]]:
        """Return the index of each name in `found` (sorted, distinct), and all label names."""
        known = {name: index for index, name in reversed(list(enumerate(self.names)))}
        if known and all(name in known for name in found):
            return {name: known[name] for name in found}, self.names
        if all(name.isdecimal() for name in found):
            return self._indices(found, where), self.names
        if self.count == _IMAGENET_CLASSES and all(_SYNSET.fullmatch(name) for name in found):
            return self._synsets(found, where)
        if known:
            self._refuse([name for name in found if name not in known], self.names, where)
        if self.count not in (None, len(found)):
            raise DataError(
                f"{where} has {len(found)} classes but the model has {self.count}, without names, "
                "so they cannot be matched. Name them by class index (0, 1, ...)."
            )
        return {name: index for index, name in enumerate(found)}, tuple(found)

    def _indices(self, found: Sequence[str], where: Path) -> dict[str, int]:
        indices = {name: int(name) for name in found}
        if self.count is not None and max(indices.values()) >= self.count:
            raise DataError(
                f"{where} has class {max(indices.values())} but the model has {self.count} "
                f"classes: allowed are 0 to {self.count - 1}. Counting starts at 0."
            )
        return indices

    def _synsets(self, found: Sequence[str], where: Path) -> tuple[dict[str, int], tuple[str, ...]]:
        from timm.data import ImageNetInfo  # imports torch: only where synsets are met

        synsets = tuple(ImageNetInfo("imagenet-1k").label_names())
        unknown = [name for name in found if name not in synsets]
        if unknown:
            self._refuse(unknown, synsets, where)
        return {name: synsets.index(name) for name in found}, self.names or synsets

    def _refuse(self, unknown: Sequence[str], names: Sequence[str], where: Path) -> None:
        listed = "; ".join(f"'{name}'{suggest(name, names)}" for name in unknown[:5])
        known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise DataError(
            f"{where}: {len(unknown)} classes that the model does not have: {listed}. "
            f"Allowed: {known}. Rename them, or use class indices (0, 1, ...)."
        )


def _scan_folder(folder: Path, name: str, classes: _Classes) -> ImageSet:
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    flat = [entry for entry in entries if _is_image(entry)]
    folders = [entry for entry in entries if entry.is_dir() and entry.name != "__MACOSX"]
    nested = {entry: _images_below(entry) for entry in folders}
    if flat and any(nested.values()):
        raise DataError(
            f"{folder} holds both images ({flat[0].name}, ...) and folders of images "
            f"({next(entry for entry in folders if nested[entry]).name}, ...), so it is not clear "
            f"whether they are classes. Keep one of the two. {_ADVICE}"
        )
    if flat:
        return ImageSet(name, tuple(flat), None, (), "user")
    if not any(nested.values()):
        raise DataError(f"no images in {folder}; looked for {', '.join(IMAGE_SUFFIXES)}. {_ADVICE}")
    empty = [entry.name for entry in folders if not nested[entry]]
    if empty:
        raise DataError(
            f"{folder}: class folders without images: {', '.join(empty[:5])}. "
            "Fill or remove them; each folder counts as a class."
        )
    indices, names = classes.resolve([entry.name for entry in folders], folder)
    rows = [(path, indices[entry.name]) for entry in folders for path in nested[entry]]
    return ImageSet(name, tuple(p for p, _ in rows), tuple(i for _, i in rows), names, "user")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if not path.name.startswith(".") and _is_image(path)
    )


def _read_list(file: Path, name: str, classes: _Classes) -> ImageSet:
    rows = _parse_list(file)
    if not rows:
        raise DataError(f"{file} lists no images. {_ADVICE}")
    paths = [path for path, _ in rows]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(paths)} images do not exist: "
            f"{', '.join(missing[:3])}. Paths are relative to the folder of the list."
        )
    labels = [label for _, label in rows if label]
    if not labels:
        return ImageSet(name, tuple(paths), None, (), "user")
    if len(labels) != len(rows):
        bare = next(path.name for path, label in rows if not label)
        raise DataError(
            f"{file}: {len(labels)} of {len(rows)} lines have a label ({bare} has none); "
            "give all of them one, or none."
        )
    indices, names = classes.resolve(sorted(set(labels)), file)
    return ImageSet(name, tuple(paths), tuple(indices[label] for label in labels), names, "user")


def _parse_list(file: Path) -> list[tuple[Path, str]]:
    """Return (path, label or "") of each line; blank lines, # comments and a header are skipped."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{file} cannot be read as UTF-8 text ({e}). {_ADVICE}") from e
    rows: list[tuple[Path, str]] = []
    header = re.compile(r'"?(path|file|filename|image|image_path)"?\s*([,;\t ].*)?', re.I)
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#") or (number == 1 and header.fullmatch(text)):
            continue
        match = _LINE.match(text)
        if match is None:
            raise DataError(
                f"{file}, line {number}: {text!r} names no image; expected 'path' or "
                f"'path,label' with a path that ends in {', '.join(IMAGE_SUFFIXES)}."
            )
        rows.append((file.parent / match["path"], match["label"] or ""))
    return rows
