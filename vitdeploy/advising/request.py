"""What `vitdeploy advise` is asked; nothing here is carried out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.advising.candidates import ORIGINAL
from vitdeploy.advising.schema import Objective
from vitdeploy.errors import UsageError
from vitdeploy.recipe import Recipe, TargetName


@dataclass(frozen=True)
class Request:
    """What is asked.

    Raises:
        UsageError: without a limit to the points lost; a variant is no folder, or two have one
            name.
    """

    recipe: Recipe
    """Model, images, how to measure, seed, and `gates.max_drop_points`; no precision or target."""
    targets: tuple[TargetName, ...]
    precisions: tuple[str, ...]
    objective: Objective = "latency"
    budget_seconds: float = 600.0
    pruned: tuple[Path, ...] = ()
    """Model folders that `vitdeploy prune` or `distill` made of the model."""
    work: Path | None = None
    """Where results are kept for the next time; the user's cache folder where None."""

    def __post_init__(self) -> None:
        if self.recipe.gates.max_drop_points is None:
            raise UsageError("advise weighs cost against points lost; give --max-drop POINTS.")
        missing = [str(folder) for folder in self.pruned if not folder.is_dir()]
        if missing:
            raise UsageError(
                f"--pruned: no folder {', '.join(missing)}; give one that `vitdeploy prune` wrote."
            )
        names = [self.name_of(folder) for folder in self.pruned]
        if len(set(names)) < len(names) or ORIGINAL in names:
            raise UsageError(
                f"--pruned: the folders are called {', '.join(names)}, but each needs a name of "
                f"its own, and none '{ORIGINAL}'. Rename one."
            )

    @property
    def max_drop(self) -> float:
        """Points that may be lost."""
        return self.recipe.gates.max_drop_points or 0.0

    @property
    def variants(self) -> Mapping[str, Path]:
        """Pruned model folders by name."""
        return {self.name_of(folder): folder for folder in self.pruned}

    @staticmethod
    def name_of(folder: Path) -> str:
        """Return the name of a pruned variant."""
        return folder.resolve().name
