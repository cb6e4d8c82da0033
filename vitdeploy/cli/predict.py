"""`vitdeploy predict`: a bundle on image files."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    target: Annotated[str | None, typer.Option(help="Which of the bundle's targets.")] = None,
    json: Json = False,
) -> None:
    """Run the bundle's model on image files."""
    from vitdeploy.display import print_predictions
    from vitdeploy.predictor import load

    with load(bundle, target) as predictor:
        results = [(str(path), predictor.predict(path)) for path in images]
    print_predictions(results, as_json=json)
