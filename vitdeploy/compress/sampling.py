"""Which calibration images the search looks at: few, from all over the set, in mixed order.

Ranges need every image, choices only some. A folder may be sorted by class, and a search that is
short of time reads a prefix, so the images that are read first must be of many classes.
"""

from collections.abc import Sequence

import numpy as np

from vitdeploy.compress.calibrate import Batches
from vitdeploy.runner import Feeds

MOST_BYTES = 1 << 28
"""Of images kept in memory; of very large ones there are fewer."""


def mixed(batches: Batches, images: int) -> list[Feeds]:
    """Return batches of about `images` images from all over the pass, in mixed order.

    The same whenever it is called. Batches that cannot be taken apart are mixed whole.

    Args:
        batches: a pass over the calibration images.
        images: at least so many where there are, and at most twice as many.
    """
    kept = spread(batches, images)
    generator = np.random.default_rng(0)
    if not kept or not _are_alike(kept):
        return [kept[number] for number in generator.permutation(len(kept))]
    size = len(next(iter(kept[0].values())))
    joined = {name: np.concatenate([feeds[name] for feeds in kept]) for name in kept[0]}
    order = generator.permutation(len(next(iter(joined.values()))))
    starts = range(0, len(order), size)
    return [{name: v[order[s : s + size]] for name, v in joined.items()} for s in starts]


def spread(batches: Batches, images: int) -> list[Feeds]:
    """Return batches of at least `images` images in all, evenly spread over the whole pass.

    At most twice as many are kept.
    """
    kept: list[Feeds] = []
    stride = 1
    for number, feeds in enumerate(batches()):
        if number % stride:
            continue
        kept.append(feeds)
        if _is_plenty(kept, images) and len(kept) > 1:
            kept, stride = kept[::2], 2 * stride
    return kept


def _is_plenty(kept: Sequence[Feeds], images: int) -> bool:
    count = sum(len(next(iter(feeds.values()))) for feeds in kept)
    size = sum(value.nbytes for feeds in kept for value in feeds.values())
    return count >= 2 * images or size > MOST_BYTES


def _are_alike(kept: Sequence[Feeds]) -> bool:
    """Return whether images of different batches can be put into one."""
    first = {name: value.shape[1:] for name, value in kept[0].items()}
    return all(
        {name: value.shape[1:] for name, value in feeds.items()} == first
        and len({len(value) for value in feeds.values()}) == 1
        for feeds in kept
    )
