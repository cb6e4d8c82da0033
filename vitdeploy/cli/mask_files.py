"""The files and the table that masks become on the command line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.cli.outcome import require_writable
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitdeploy.prompts import Prompt

_FORMATS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class ShownMask:
    """One mask and what is told of it."""

    mask: "NDArray[np.bool_]"
    """(height, width) of the picture; True is inside."""
    score: float
    """Predicted IoU."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else JSON and the table have, by name."""


@dataclass(frozen=True)
class MaskFiles:
    """Where a picture's masks go."""

    image: Path
    overlay: Path
    """The picture with the masks drawn on."""
    folder: Path | None
    """Of one PNG a mask; None writes none."""

    def require_free(self, *, force: bool) -> None:
        """Return where the files can be written; call it before any work is done.

        Raises:
            UsageError: something is there (`force` allows another overlay), the folder above is
                none, or the overlay's name is not that of a picture.
        """
        if self.overlay.suffix.lower() not in _FORMATS:
            raise UsageError(
                f"cannot write '{self.overlay}': allowed are names that end with "
                f"{', '.join(_FORMATS)}."
            )
        require_writable(self.overlay)
        is_image = self.overlay.resolve() == self.image.resolve()
        if self.overlay.exists() and (not force or is_image):
            raise UsageError(
                f"'{self.overlay}' exists. Choose another --output, or replace it with --force "
                "where it is not the picture itself."
            )
        if self.folder is not None:
            if self.folder.exists():
                raise UsageError(f"'{self.folder}' exists; give a new folder with --masks.")
            require_writable(self.folder)

    def write(self, masks: Sequence[ShownMask], prompt: "Prompt | None") -> list[dict[str, Any]]:
        """Write overlay and masks; return what is told of each mask."""
        from PIL import Image

        from vitdeploy.data import open_image
        from vitdeploy.predictor.everything import mask_box
        from vitdeploy.predictor.overlay import overlay

        try:
            drawn = overlay(open_image(self.image), [shown.mask for shown in masks], prompt)
            drawn.save(self.overlay)
            if self.folder is not None:
                self.folder.mkdir()
            rows = []
            for index, shown in enumerate(masks):
                file = None if self.folder is None else self.folder / f"{index:03d}.png"
                if file is not None:
                    Image.fromarray(shown.mask).save(file)
                rows.append(
                    {
                        "score": shown.score,
                        "area": int(shown.mask.sum()),
                        "box": list(mask_box(shown.mask)),
                        **shown.details,
                        "file": None if file is None else str(file),
                    }
                )
        except OSError as error:
            raise UsageError(f"cannot write '{error.filename}': {error.strerror}.") from error
        return rows

    def show(self, rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
        """Print what is told of each mask."""
        from vitdeploy.console import print_json, print_line, print_table

        if as_json:
            picture = {"image": str(self.image), "overlay": str(self.overlay), "masks": list(rows)}
            print_json(json.dumps([picture], indent=2))
            return
        shown = [
            (str(index), f"{row['score']:.3f}", str(row["area"]), _box(row["box"]))
            for index, row in enumerate(rows)
        ]
        columns = ["mask", ">predicted IoU", ">pixels", "box (left, top, right, bottom)"]
        if shown:
            print_table(str(self.image), columns, shown)
        else:
            print_line(
                f"{self.image}: no mask passed the filters; lower --pred-iou-thresh or "
                "--stability-score-thresh."
            )
        print_line(f"overlay: {self.overlay}")


def _box(edges: Sequence[int]) -> str:
    return ", ".join(str(edge) for edge in edges)
