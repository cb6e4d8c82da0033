"""`vitdeploy build`: TensorRT engines, built, compared and timed on the device itself."""

import json as json_text
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vitdeploy.cli.options import Json
from vitdeploy.errors import UsageError


def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, made with --target trt.")],
    target: Annotated[str, typer.Option(help="trt; nothing else is built on the device.")] = "trt",
    engine: Annotated[
        str, typer.Option(help="auto (the fastest faithful one), fp16, int8, ...")
    ] = "auto",
    workspace_mib: Annotated[
        int | None, typer.Option(min=1, help="Room for the builder; half of what is free.")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="batch=4: the size tuned and timed for; repeatable."),
    ] = None,
    trtexec: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Time with trtexec too; builds alone without tensorrt."),
    ] = None,
    no_timing: Annotated[bool, typer.Option("--no-timing", help="Build and compare only.")] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Accept what trtexec built alone, not compared.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a bundle's TensorRT engines on this machine, compare and time them."""
    from vitdeploy.console import print_json
    from vitdeploy.device import BuildOptions, build_bundle
    from vitdeploy.device.building import raise_failure, sizes_of

    if target not in {"trt", "engine"}:
        raise UsageError(f"--target {target}: only trt is built on the device.")
    options = BuildOptions(
        engine=engine,
        workspace_mib=workspace_mib,
        is_timed=not no_timing,
        trtexec=trtexec,
        sizes=sizes_of(shapes or []),
        allows_unchecked=no_check,
    )
    outcome = build_bundle(bundle, options)
    if json:
        print_json(json_text.dumps(outcome.report, indent=2, ensure_ascii=False))
    else:
        print_device_report(outcome.report)
    raise_failure(outcome)


def print_device_report(report: Mapping[str, Any]) -> None:
    """Print a device report's tables."""
    from vitdeploy.console import print_line, print_table
    from vitdeploy.device import device_section

    for table in device_section(report):
        columns = [name.replace("#", ">", 1) for name in table.columns]
        rows = [
            [
                f"{cell.text} {cell.detail}".strip() + (f" ({cell.note})" if cell.note else "")
                for cell in row
            ]
            for row in table.rows
        ]
        print_table(table.title, columns, rows)
        for number, note in enumerate(table.notes, start=1):
            print_line(f"({number}) {note}")
