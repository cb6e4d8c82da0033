"""`vitdeploy check`: a bundle against its golden outputs."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json, require_positive
from vitdeploy.cli.outcome import print_json_or, raise_failed_gates


def check(
    artifact: Annotated[Path, typer.Argument(help="Bundle folder.")],
    against: Annotated[Path | None, typer.Option(help="Another bundle to compare with.")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Gate; the bundle's own by default.", callback=require_positive),
    ] = None,
    json: Json = False,
) -> None:
    """Verify a bundle's hashes and run it against its golden outputs on this machine."""
    from vitdeploy.checking import check as check_bundle
    from vitdeploy.display import print_check

    report = check_bundle(artifact, against=against, max_drop_points=max_drop)
    print_json_or(report, json, print_check)
    raise_failed_gates(report)
