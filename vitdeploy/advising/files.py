"""The folder of an advice: `advice.json`, `advice.html`, and the recipe that it recommends."""

import shlex
from itertools import count
from pathlib import Path

from vitdeploy.advising.candidates import ORIGINAL
from vitdeploy.advising.html import render
from vitdeploy.advising.schema import Advice, AdviceRow
from vitdeploy.output import raise_if_full, require_free_output
from vitdeploy.recipe import Recipe, yaml_from_recipe

ADVICE_NAME, PAGE_NAME, RECIPE_NAME = "advice.json", "advice.html", "recommended.yaml"
_NAMES = {ADVICE_NAME, PAGE_NAME, RECIPE_NAME}


def require_own_folder(folder: Path) -> None:
    """Return where an advice can be written: there is nothing, or an earlier one, to be replaced.

    Raises:
        UsageError: something else is there, or the folder above cannot be written.
    """
    if not (folder.is_dir() and {path.name for path in folder.iterdir()} <= _NAMES):
        require_free_output(folder, force=False)


def command_for(row: AdviceRow, model: str, folder: Path) -> str:
    """Return the command line that makes a candidate from the recipe in an advice's folder."""
    stem = Path(model.rstrip("/\\")).name.rpartition(":")[2].removesuffix(".onnx")
    own = "" if row.variant == ORIGINAL else f"-{row.variant}"
    first = f"{stem}{own}-{row.precision}-{row.target}"
    names = (first if number == 1 else f"{first}-{number}" for number in count(1))
    free = next(name for name in names if not Path(name).exists())
    return shlex.join(["vitdeploy", "run", str(folder / RECIPE_NAME), "--output", free])


def write_files(advice: Advice, recipe: Recipe | None, folder: Path) -> None:
    """Write the advice, and the recipe it recommends where there is one.

    Raises:
        DataError: the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE_NAME).unlink(missing_ok=True)
        texts = {PAGE_NAME: render(advice), ADVICE_NAME: advice.model_dump_json(indent=2) + "\n"}
        if recipe is not None:
            texts[RECIPE_NAME] = yaml_from_recipe(recipe)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise_if_full(error, folder)
        raise
