"""`vitdeploy advise`: what to ship, of precisions, targets and pruned variants."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.options import (
    Calib,
    CalibSamples,
    Checkpoint,
    Eval,
    EvalSamples,
    ImageSize,
    Json,
    Model,
    Outputs,
    Quiet,
    RandomWeights,
    Seed,
    Targets,
    require_positive,
)
from vitdeploy.errors import GateError, StoppedError, UsageError, suggest

if TYPE_CHECKING:
    from vitdeploy.advising import Advice, Objective, Request


def advise(
    model: Model,
    max_drop: Annotated[
        float,
        typer.Option(
            help="Points of top-1, agreement, or 100 x cosine that may be lost.",
            callback=require_positive,
        ),
    ],
    objective: Annotated[str, typer.Option(help="latency, size or energy.")] = "latency",
    budget: Annotated[str, typer.Option(help="Time for all of it: 90s, 10m, 1.5h.")] = "10m",
    target: Targets = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="One to try; repeatable. All by default.")
    ] = None,
    pruned: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that `vitdeploy prune` made of MODEL; repeatable."),
    ] = None,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    calib: Calib = None,
    calib_samples: CalibSamples = 256,
    eval_: Eval = None,
    eval_samples: EvalSamples = None,
    image_size: ImageSize = None,
    outputs: Outputs = None,
    measure_seconds: Annotated[
        float, typer.Option(help="Timing budget of each candidate.", callback=require_positive)
    ] = 5.0,
    threads: Annotated[int | None, typer.Option(help="All cores by default.", min=1)] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for results that the next run goes on from; in the user's cache"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; ./<model>-advice.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try what MODEL can be shipped as, within a time budget; recommend one command line.

    Results are kept: the same command, run again, goes on where this one ended.
    """
    from vitdeploy.advising import Request, seconds_from_duration
    from vitdeploy.advising import advise as advise_on
    from vitdeploy.advising.candidates import PRECISIONS_TRIED
    from vitdeploy.console import ConsoleProgress, print_json
    from vitdeploy.recipe import recipe_from_dict

    asked = recipe_from_dict(
        {
            "model": {
                "source": model,
                "checkpoint": str(checkpoint) if checkpoint else None,
                "random_weights": random_weights,
                "image_size": image_size,
                "outputs": outputs,
            },
            "targets": target or ["onnx", "openvino"],
            "calibration": {"path": calib, "samples": calib_samples},
            "evaluation": {"path": eval_, "samples": eval_samples},
            "gates": {"max_drop_points": max_drop},
            # the usual settings of each precision: timing others too would cost every candidate
            # the time of several
            "measure": {"seconds": measure_seconds, "search_seconds": 0, "threads": threads},
            "seed": seed,
        },
        "options",
    )
    request = Request(
        recipe=asked,
        targets=asked.targets,
        precisions=_precisions(precision) or PRECISIONS_TRIED,
        objective=_objective(objective),
        budget_seconds=seconds_from_duration(budget),
        pruned=tuple(pruned or ()),
        work=work,
    )
    folder = output or Path(f"{Path(model).name.rpartition(':')[2].removesuffix('.onnx')}-advice")
    with ConsoleProgress(quiet=quiet) as progress:
        advice, was_stopped = advise_on(request, folder, progress=progress)
    if json:
        print_json(advice.model_dump_json(indent=2))
    elif not quiet:
        _print_advice(advice, folder)
    _raise_unfinished(advice, request, was_stopped=was_stopped)


def _objective(name: str) -> "Objective":
    from vitdeploy.advising import OBJECTIVES

    for known in OBJECTIVES:
        if name == known:
            return known
    raise UsageError(
        f"--objective is '{name}'; allowed: {', '.join(OBJECTIVES)}.{suggest(name, OBJECTIVES)}"
    )


def _precisions(names: list[str] | None) -> tuple[str, ...]:
    """Return the precisions asked for under their proper names, each once."""
    from vitdeploy.advising.candidates import PRECISIONS_TRIED
    from vitdeploy.recipe import canonical_precision

    found = []
    for name in names or ():
        try:
            precision = canonical_precision(name)
        except ValueError as error:
            raise UsageError(f"--precision: {error}") from error
        if precision not in PRECISIONS_TRIED:
            raise UsageError(
                f"--precision is '{name}', which advise itself does; allowed: "
                f"{', '.join(PRECISIONS_TRIED)}."
            )
        found.append(precision)
    return tuple(dict.fromkeys(found))


def _print_advice(advice: "Advice", folder: Path) -> None:
    """Show the front and all else that was tried, what to ship, and the command line for it."""
    from vitdeploy.advising.html import columns, table_cells
    from vitdeploy.console import print_line, print_table

    names = columns(advice.objective)
    titles = [*names[:2], *(f">{name}" for name in names[2:-1]), names[-1]]
    front = [advice.row(name) for name in advice.front]
    others = [row for row in advice.rows if row.name not in advice.front]
    print_table(
        f"{advice.model}: the Pareto front of points lost and {advice.objective}",
        titles,
        [table_cells(row, advice.objective) for row in front],
    )
    if others:
        print_table("the others", titles, [table_cells(row, advice.objective) for row in others])
    for note in advice.notes:
        print_line(f"note: {note}")
    print_line(f"{advice.recommended_reason}.")
    print_line(f"advice: {folder / 'advice.html'}")
    if advice.command:
        print_line(advice.command)


def _raise_unfinished(advice: "Advice", request: "Request", *, was_stopped: bool) -> None:
    """Raise where somebody stopped the work, or nothing can be recommended.

    Raises:
        StoppedError: Ctrl-C.
        GateError: nothing keeps the limit.
    """
    waiting = sum(row.status == "waiting" for row in advice.rows)
    known = len(advice.rows) - waiting
    if was_stopped:
        raise StoppedError(
            f"interrupted with {known} of {len(advice.rows)} candidates known; what was found is "
            "kept, and the same command goes on."
        )
    if advice.recommended is None:
        more = f" {waiting} candidate(s) were not tried: give more --budget." if waiting else ""
        raise GateError(f"--max-drop {request.max_drop:g}: {advice.recommended_reason}.{more}")
