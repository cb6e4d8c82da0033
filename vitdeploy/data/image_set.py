"""`ImageSet`, the images of one run with their labels, and `ImageLoader`, which reads them.

Where a set comes from lives in `folder`, `packaged` and `pictures`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitdeploy.data.pictures import Picture, render
from vitdeploy.data.preprocess import Preprocess, prepare, to_rgb
from vitdeploy.errors import DataError

Origin = Literal["user", "packaged", "generic", "synthetic"]
Batch: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]

MAX_UNREADABLE_SHARE = 0.05
"""Above this share of unreadable files a set is refused: something else is wrong with it."""


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, with a class index each where they are labelled.

    Raises:
        DataError: labels and images differ in number, or both paths and pictures are given.
    """

    name: str
    """For reports: the name of the folder or of the packaged set, never a machine path."""
    paths: tuple[Path, ...]
    """Files; empty for a synthetic set."""
    labels: tuple[int, ...] | None
    """One class index per image, or None."""
    label_names: tuple[str, ...]
    """`label_names[label]` is the name of a class; empty where the classes have none."""
    origin: Origin
    pictures: tuple[Picture, ...] = ()
    """What a synthetic set draws instead of reading files; empty for all others."""

    def __post_init__(self) -> None:
        if self.paths and self.pictures:
            raise DataError(f"image set '{self.name}' has both files and drawn pictures; use one.")
        if self.labels is not None and len(self.labels) != len(self):
            raise DataError(
                f"image set '{self.name}' has {len(self)} images but {len(self.labels)} labels; "
                "give one label per image, or None."
            )

    def __len__(self) -> int:
        return len(self.paths) or len(self.pictures)

    def open(self, index: int) -> Image.Image:
        """Return image `index` in mode RGB, in its own size; its EXIF orientation is not applied.

        Raises:
            DataError: the file is missing, damaged, no image or has over 8 bits per channel.
        """
        if self.pictures:
            return render(self.pictures[index])
        return open_image(self.paths[index])

    def sample(self, count: int, seed: int) -> "ImageSet":
        """Return `count` images drawn by `seed`; the whole set where it has no more.

        Labelled sets are stratified: every class is there once before any is there twice,
        beyond that in proportion to its size. A smaller sample of the same seed is a prefix
        of a larger one.

        Raises:
            DataError: `count` is below 1.
        """
        if count < 1:
            raise DataError(f"cannot draw {count} images of '{self.name}': ask for at least 1.")
        if count >= len(self):
            return self
        rng = np.random.default_rng(seed)
        shuffled = rng.permutation(len(self))
        if self.labels is None:
            return self._subset(shuffled[:count].tolist())
        labels = np.asarray(self.labels)[shuffled]
        share_before = np.zeros(len(self))
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            share_before[members] = np.arange(len(members)) / len(members)
        order = np.argsort(share_before, kind="stable")
        return self._subset(shuffled[order[:count]].tolist())

    def digest(self) -> str:
        """Return the SHA-256 of all images and labels.

        It depends on the bytes of the files and on the labels alone: not on the folder, the
        file names or the order.

        Raises:
            DataError: a file cannot be read.
        """
        rows = []
        for index in range(len(self)):
            label = "" if self.labels is None else str(self.labels[index])
            rows.append(f"{hashlib.sha256(self._bytes(index)).hexdigest()} {label}\n")
        return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()

    def _bytes(self, index: int) -> bytes:
        if self.pictures:
            return render(self.pictures[index]).tobytes()
        try:
            return self.paths[index].read_bytes()
        except OSError as e:
            raise DataError(f"{self.paths[index]}: cannot be read ({e.strerror}).") from e

    def _subset(self, indices: Sequence[int]) -> "ImageSet":
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices) if self.paths else (),
            pictures=tuple(self.pictures[i] for i in indices) if self.pictures else (),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),
        )


def open_image(image: str | Path | Image.Image) -> Image.Image:
    """Return the file (or the picture given) in mode RGB, in its own size.

    The EXIF orientation is not applied; see `prepare`. Of an animation it is the first frame.

    Raises:
        DataError: the file is missing, damaged, no image or has over 8 bits per channel.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    try:
        with Image.open(image) as opened:
            opened.load()
            return to_rgb(opened)
    except FileNotFoundError as e:
        raise DataError(f"{image}: there is no such image file; check the path.") from e
    except UnidentifiedImageError as e:
        raise DataError(f"{image}: not an image that Pillow can read.") from e
    except DataError as e:
        raise DataError(f"{image}: {e}") from e
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        raise DataError(f"{image}: damaged or unreadable image ({e}).") from e


@dataclass(frozen=True)
class Unreadable:
    """An image that was left out, and why."""

    index: int
    """Its place in the image set."""
    reason: str


class ImageLoader:
    """Reads an image set batch by batch and remembers what it had to leave out."""

    def __init__(self, image_set: ImageSet, preprocess: Preprocess) -> None:
        self.image_set = image_set
        self.preprocess = preprocess
        self._skipped: list[Unreadable] = []

    @property
    def skipped(self) -> tuple[Unreadable, ...]:
        """The unreadable images met so far in the latest pass of `batches`."""
        return tuple(self._skipped)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield (images (n, 3, H, W) float32 normalised, indices (n,) int64 into the set).

        Each batch has `batch_size` images but the last, which may have fewer. Unreadable
        images are left out and listed in `skipped`.

        Raises:
            DataError: the set is empty, `batch_size` is below 1, or more than 5 % of the
                set is unreadable.
        """
        if batch_size < 1:
            raise DataError(f"batch size is {batch_size}; it must be at least 1.")
        if not len(self.image_set):
            raise DataError(f"image set '{self.image_set.name}' is empty; give at least one image.")
        return self._read(batch_size)

    def _read(self, batch_size: int) -> Iterator[Batch]:
        self._skipped = []
        arrays: list[NDArray[np.float32]] = []
        indices: list[int] = []
        for index in range(len(self.image_set)):
            try:
                arrays.append(prepare(self.image_set.open(index), self.preprocess))
            except DataError as e:
                self._skip(Unreadable(index, str(e)))
                continue
            indices.append(index)
            if len(arrays) == batch_size:
                yield np.stack(arrays), np.asarray(indices, dtype=np.int64)
                arrays, indices = [], []
        if arrays:
            yield np.stack(arrays), np.asarray(indices, dtype=np.int64)

    def _skip(self, unreadable: Unreadable) -> None:
        self._skipped.append(unreadable)
        total = len(self.image_set)
        if len(self._skipped) > MAX_UNREADABLE_SHARE * total:
            first = "\n  ".join(entry.reason for entry in self._skipped[:5])
            raise DataError(
                f"image set '{self.image_set.name}': {len(self._skipped)} of the first "
                f"{unreadable.index + 1} images are unreadable, more than "
                f"{MAX_UNREADABLE_SHARE:.0%} of all {total}:\n  {first}\n"
                "Repair or remove them and run again."
            )


def load_batches(image_set: ImageSet, preprocess: Preprocess, batch_size: int) -> Iterator[Batch]:
    """Return the batches of an `ImageLoader`, for a caller who does not ask what was skipped.

    Raises:
        DataError: as `ImageLoader.batches`.
    """
    return ImageLoader(image_set, preprocess).batches(batch_size)


def synthetic_set(count: int, seed: int, size: tuple[int, int] = (384, 384)) -> ImageSet:
    """Return `count` unlabelled rendered pictures of `size` (height, width) pixels.

    Raises:
        DataError: `count` is below 1 or `size` has no pixels.
    """
    if count < 1 or min(size) < 1:
        raise DataError(
            f"cannot render {count} pictures of {size[0]} x {size[1]} pixels: "
            "ask for at least one picture of at least one pixel."
        )
    pictures = tuple(Picture(seed, index, size[0], size[1]) for index in range(count))
    return ImageSet("synthetic", (), None, (), "synthetic", pictures)
