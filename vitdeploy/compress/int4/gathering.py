"""Second moments of what every product reads, gathered in few passes and kept on disk.

A wide model has gigabytes of them; each product needs its own only while it is rounded.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitdeploy.compress.calibrate import Batches, limited
from vitdeploy.compress.int4.codes import InputMoments
from vitdeploy.compress.rounding import Moments, collect_moments, passes_of
from vitdeploy.errors import CompressionError
from vitdeploy.graph.linear import linear_at
from vitdeploy.graph.sites import WeightSite
from vitdeploy.runner import Feeds

IMAGES = 256
"""Calibration images read at most."""
ROWS_PER_CHANNEL = 16
"""Tokens that are enough for each input channel."""
PASS_BYTES = 1 << 30
"""Moments gathered in one pass of the images."""


class MomentStore(Mapping[str, InputMoments]):
    """Moments by site name, read from disk when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._means: dict[str, np.ndarray | None] = {}
        self._rows: dict[str, int] = {}
        self._images: dict[str, int] = {}

    def add(self, found: Mapping[str, Moments], sites: Sequence[WeightSite], images: int) -> None:
        """Keep what was found for the sites, by activation name, on so many images."""
        for name, moments in found.items():
            product = moments.product / np.float32(moments.rows)
            mean = moments.total / np.float32(moments.rows)
            for is_centred in (False, True):
                readers = [
                    site
                    for site in sites
                    if str(site.activation.name) == name and has_bias(site) == is_centred
                ]
                if not readers:
                    continue
                path = self._folder / f"{len(self._files)}.npy"
                np.save(path, product - np.outer(mean, mean) if is_centred else product)
                for site in readers:
                    self._files[site.name] = path
                    self._means[site.name] = mean if is_centred else None
                    self._rows[site.name] = moments.rows
                    self._images[site.name] = images

    def rows(self, name: str) -> int:
        """Return how many tokens a product's moments were summed over."""
        return self._rows[name]

    def rows_per_image(self, name: str) -> float:
        """Return how many tokens of an image a product reads; 1 for a classifier's head."""
        return self._rows[name] / self._images[name]

    def __getitem__(self, name: str) -> InputMoments:
        return InputMoments(np.load(self._files[name]), self._means[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@contextmanager
def gathered_moments(
    model: ir.Model,
    sites: Sequence[WeightSite],
    batches: Batches,
    progress: Callable[[int], None] | None = None,
) -> Iterator[MomentStore]:
    """Give the moments of what the sites read, while the block lasts.

    Args:
        model: FP32 graph; not changed.
        sites: of this graph.
        batches: a pass over the calibration images.
        progress: called with the number of images seen in this pass.

    Raises:
        CompressionError: there are no images.
    """
    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
        store = MomentStore(Path(folder))
        for group in passes_of(sites, PASS_BYTES):
            images = _Images(batches, progress)
            moments = collect_moments(
                model, group, limited(images.passes, IMAGES), ROWS_PER_CHANNEL
            )
            if not images.seen:
                raise CompressionError(
                    "calibration got no image; give a folder with images to --calib."
                )
            store.add(moments, group, images.seen)
        yield store


def has_bias(site: WeightSite) -> bool:
    """Return whether a constant bias can take off what the mean of the input adds."""
    linear = linear_at(site.node)
    return linear is not None and linear.bias is not None


class _Images:
    """Counts the images of a pass."""

    def __init__(self, batches: Batches, progress: Callable[[int], None] | None) -> None:
        self.seen = 0
        self._batches = batches
        self._progress = progress

    def passes(self) -> Iterator[Feeds]:
        for feeds in self._batches():
            self.seen += len(next(iter(feeds.values())))
            if self._progress:
                self._progress(self.seen)
            yield feeds
