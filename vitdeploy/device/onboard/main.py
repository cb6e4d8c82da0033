"""`build.py` itself: options, the machine, one part after the other, `device_report.json`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .board import describe_board, is_jetson, run_command
from .candidates import BuildOptions, Candidate, DeviceTools
from .choice import PartOutcome, build_part, outcome_row
from .contents import PACKAGE_NAME, PackageContents, read_contents, sha256_of
from .cuda import gpu_name, load_cuda
from .failure import MEASUREMENT, MISSING, USAGE, Failure, say
from .trtexec import find_trtexec, trtexec_version
from .versions import INSTALL, require_supported, version_from_text

REPORT_NAME = "device_report.json"
REPORT_FORMAT = "vitdeploy-device-report"
REPORT_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class DeviceOutcome:
    """The report that was written, and why it is no success where it is none."""

    report: Mapping[str, Any]
    failure: Failure | None


def build_package(folder: Path, options: BuildOptions) -> DeviceOutcome:
    """Build every part of the package in `folder`; engines and report appear there, whole.

    Raises:
        Failure: nothing could be tried: a damaged package, no TensorRT, no GPU, a full disk.
    """
    contents = read_contents(folder)
    tools = find_tools(options)
    scratch = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=str(folder)))
        facts = _device_facts(tools)
        outcomes, rows = [], []
        for part in contents.parts:
            outcome = build_part(tools, contents, part, options, scratch)
            outcomes.append(outcome)
            kept = _keep_engine(contents, outcome, facts) if outcome.chosen else None
            rows.append(outcome_row(outcome, kept))
        failure = _first_failure(outcomes, options)
        report = _report(contents, options, facts, rows)
        report["passed"] = failure is None
        _write_json(folder / REPORT_NAME, report)
        return DeviceOutcome(report, failure)
    except OSError as error:
        raise Failure(
            f"cannot write to '{folder}': {error.strerror or error}. Make room, or copy the "
            "package to a folder you may write.",
            MEASUREMENT,
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(str(scratch), ignore_errors=True)


def find_tools(options: BuildOptions) -> DeviceTools:
    """Return what this machine builds with: Python's tensorrt, or trtexec where that is asked for.

    Raises:
        Failure: neither is here, the version is too old, or there is no GPU.
    """
    jetson = is_jetson(Path("/"))
    try:
        import tensorrt as trt
    except ImportError as error:
        if options.trtexec is None:
            raise Failure(
                f"Python {sys.version.split()[0]} at '{sys.executable}' has no module tensorrt "
                f"({error}). {INSTALL}. With --trtexec, trtexec builds alone.",
                MISSING,
            ) from error
        program = find_trtexec(options.trtexec)
        version = trtexec_version(program)
        require_supported(version, is_jetson=jetson)
        return DeviceTools(version, None, None, program)
    version = version_from_text(trt.__version__)
    require_supported(version, is_jetson=jetson)
    timer = find_trtexec(options.trtexec) if options.trtexec is not None else None
    return DeviceTools(version, trt, load_cuda(), timer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    folder = Path(__file__).resolve().parent
    try:
        outcome = build_package(folder, options_from_arguments(arguments))
    except Failure as failure:
        say(f"error: {failure}")
        return failure.exit_code
    except KeyboardInterrupt:
        say("error: interrupted; no engine was written.")
        return 130
    for row in outcome.report["parts"]:
        engine = row["engine"]
        if engine:
            say(f"{row['part']}: {engine['file']} is {row['chosen']}, {row['chosen_reason']}")
    say(f"report: {folder / REPORT_NAME}")
    if outcome.failure:
        say(f"error: {outcome.failure}")
        return outcome.failure.exit_code
    return 0


def options_from_arguments(arguments: Sequence[str] | None) -> BuildOptions:
    """Return the options of a command line; argparse ends with 2 where they are wrong.

    Raises:
        Failure: `--shapes` is not NAME=N.
    """
    parser = argparse.ArgumentParser(
        description="Build this package's TensorRT engines on this machine, and check them."
    )
    add = parser.add_argument
    add("--engine", default="auto", help="auto (fastest faithful), fp16, int8, ...")
    add("--workspace-mib", type=_positive, help="room for the builder; half of what is free")
    add("--no-timing", action="store_true", help="build and compare only")
    add("--trtexec", nargs="?", const="", metavar="PATH", help="time with trtexec as well")
    add("--shapes", metavar="NAME=N", nargs="+", default=[], help="batch=4: optimum and timed size")
    add("--no-check", action="store_true", help="accept what trtexec built alone, not compared")
    found = parser.parse_args(arguments)
    return BuildOptions(
        engine=found.engine,
        workspace_mib=found.workspace_mib,
        is_timed=not found.no_timing,
        trtexec=found.trtexec,
        sizes=sizes_from_texts(found.shapes),
        allows_unchecked=found.no_check,
    )


def sizes_from_texts(texts: Sequence[str]) -> dict[str, int]:
    """Return `{"batch": 4}` of `["batch=4"]`.

    Raises:
        Failure: a text is something else.
    """
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name or not number.isdigit() or int(number) < 1:
            raise Failure(f"--shapes takes NAME=N with N from 1 up, not '{text}'.", USAGE)
        sizes[name] = int(number)
    return sizes


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 up")
    return int(text)


def _device_facts(tools: DeviceTools) -> dict[str, Any]:
    facts = describe_board(Path("/"), run_command)
    facts["tensorrt"] = tools.trt.__version__ if tools.trt else ".".join(map(str, tools.version))
    if tools.cuda is None:
        for name in ("gpu", "compute_capability", "cuda_runtime", "cuda_driver"):
            facts[name], facts[f"{name}_reason"] = None, "trtexec alone does not say"
        return facts
    facts["gpu"] = gpu_name()
    if facts["gpu"] is None:
        facts["gpu_reason"] = "libcuda does not say"
    facts["compute_capability"] = tools.cuda.capability()
    facts["cuda_runtime"] = tools.cuda.version("Runtime")
    facts["cuda_driver"] = tools.cuda.version("Driver")
    return facts


def _keep_engine(
    contents: PackageContents, outcome: PartOutcome, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Move the chosen engine beside its ONNX file, its stamp with it; return its report row."""
    chosen = outcome.chosen
    if chosen is None or chosen.engine is None:
        raise ValueError("no engine was chosen")
    path = contents.folder / f"{outcome.part}.engine"
    row = {"file": path.name, "bytes": chosen.engine.stat().st_size}
    row["sha256"] = sha256_of(chosen.engine)
    stamp = path.with_name(path.name + ".json")
    stamp.unlink(missing_ok=True)  # an engine without a stamp is better than with another's
    chosen.engine.replace(path)
    _write_json(stamp, {**row, **_stamp(chosen, facts)})
    return row


def _stamp(chosen: Candidate, facts: Mapping[str, Any]) -> dict[str, Any]:
    names = ("tensorrt", "gpu", "compute_capability", "driver", "cuda_runtime", "l4t")
    graph = chosen.plan.graph
    return {
        "precision": graph.precision,
        "typing": graph.typing,
        "onnx": graph.file,
        "onnx_sha256": graph.sha256,
        "is_compared": chosen.row["status"] == "faithful",
        "created": _now(),
        **{name: facts.get(name) for name in names},
    }


def _first_failure(outcomes: Sequence[PartOutcome], options: BuildOptions) -> Failure | None:
    for outcome in outcomes:
        if outcome.failure and not (outcome.chosen and options.allows_unchecked):
            return outcome.failure
    return None


def _report(
    contents: PackageContents,
    options: BuildOptions,
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        "schema_version": REPORT_SCHEMA_VERSION,
        "created": _now(),
        "model": contents.model,
        "vitdeploy_version": contents.vitdeploy_version,
        "package_sha256": sha256_of(contents.folder / PACKAGE_NAME),
        "options": {
            "engine": options.engine,
            "workspace_mib": options.workspace_mib,
            "is_timed": options.is_timed,
            "sizes": dict(options.sizes or {}),
        },
        "device": dict(facts),
        "parts": list(rows),
    }


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
