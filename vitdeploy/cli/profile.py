"""`vitdeploy profile`: latency, throughput, memory and work of artefacts, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json, require_positive
from vitdeploy.cli.outcome import (
    print_json_or,
    require_writable,
    write_text,
)
from vitdeploy.errors import UsageError


def _numbers(text: str) -> str:
    """Return a list such as `1,8` as it is, where every number is at least 1."""
    for word in text.split(","):
        if not word.strip().isdigit() or int(word) < 1:
            raise typer.BadParameter(
                f"'{word.strip()}' is not a whole number greater than or equal to 1; give one, or "
                "several such as 1,8."
            )
    return text


def profile(
    artifacts: Annotated[
        list[str], typer.Argument(help="Bundles, ONNX files, OpenVINO .xml files, model names.")
    ],
    batch: Annotated[
        str, typer.Option(help="Images per run, such as 1 or 1,8,32.", callback=_numbers)
    ] = "1",
    streams: Annotated[
        str,
        typer.Option(help="Runs at once, such as 1 or 1,2,4: their throughput.", callback=_numbers),
    ] = "1",
    seconds: Annotated[
        float, typer.Option(help="Timing budget.", callback=require_positive)
    ] = 10.0,
    threads: Annotated[
        int | None,
        typer.Option(help="Of an engine, on as many CPUs; its own choice by default.", min=1),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="cpu, cuda or tensorrt (ONNX Runtime), gpu or npu (OpenVINO), "
            "ssh://USER@HOST:PORT: bundles, there."
        ),
    ] = "cpu",
    isolate: Annotated[
        bool, typer.Option("--isolate", help="A process for each artefact; exact memory.")
    ] = False,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="How far from this machine's limits, by layer.")
    ] = False,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Of model names: seeded random weights.")
    ] = False,
    image_size: Annotated[int | None, typer.Option(help="Of model names: pixels.", min=1)] = None,
    remote_python: Annotated[
        str, typer.Option(help="Over ssh: the Python there that has the engines.")
    ] = "python3",
    power_mode: Annotated[
        str | None, typer.Option(metavar="NAME", help="Over ssh: nvpmodel's, then put back.")
    ] = None,
    lock_clocks: Annotated[
        bool, typer.Option("--lock-clocks", help="Over ssh: jetson_clocks, then put back.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as HTML.")] = None,
    json: Json = False,
) -> None:
    """Measure artefacts in turns; ratios are against the first.

    A model's name stands for its torch module and for the FP32 ONNX that its artefacts come from.
    """
    from vitdeploy.console import ConsoleProgress
    from vitdeploy.display_profile import print_profile
    from vitdeploy.profiling import ProfileOptions, profile_artifacts, report_of_profile
    from vitdeploy.report import WRITERS

    if html:
        require_writable(html)  # before the work, not after it
    over_ssh = device.startswith("ssh://")
    if not over_ssh and (remote_python, power_mode, lock_clocks) != ("python3", None, False):
        raise UsageError(
            "--remote-python, --power-mode and --lock-clocks are for --device ssh://USER@HOST."
        )
    options = ProfileOptions(
        batches=tuple(int(word) for word in batch.split(",")),
        streams=tuple(int(word) for word in streams.split(",")),
        seconds=seconds,
        threads=threads,
        device="cpu" if over_ssh else device.lower(),
        is_isolated=isolate,
        with_roofline=roofline,
        random_weights=random_weights,
        image_size=image_size,
    )
    if over_ssh:
        from vitdeploy.cli.over_ssh import profile_there
        from vitdeploy.remote import RemoteOptions

        wishes = RemoteOptions(remote_python, power_mode, lock_clocks)
        profile_there(artifacts, device, options, wishes, html=html, json=json)
        return
    with ConsoleProgress(quiet=json) as progress:
        report = report_of_profile(profile_artifacts(artifacts, options, progress))
    if html:
        write_text(html, WRITERS["html"].render(report))
    print_json_or(report, json, print_profile)
