"""NVIDIA's `trtexec`: where it is, which flags a version takes, what it measured.

It times an engine a second way, and builds where Python has no TensorRT; it compares no outputs.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .contents import InputSpec
from .engine import EngineRequest
from .execution import latency_row
from .failure import BUILD, MEASUREMENT, MISSING, Failure
from .versions import STRONG_SINCE, WEAK_UNTIL, version_from_text

_USUAL_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
_TIMEOUT_SECONDS = 3600
# What its output's first line calls the version: v8601 is 8.6.1, v100300 is 10.3.0.
_VERSION = re.compile(r"TensorRT v(\d+(?:\.\d+)*)")


def find_trtexec(asked: str) -> Path:
    """Return the program: `asked` where it is not empty, else on PATH or in the usual places.

    Raises:
        Failure: it is not there.
    """
    if asked:
        found = shutil.which(asked)
    else:
        places = [shutil.which("trtexec"), *(shutil.which(place) for place in _USUAL_PLACES)]
        found = next((place for place in places if place), None)
    if found is None:
        where = f"'{asked}'" if asked else f"PATH or {', '.join(_USUAL_PLACES)}"
        raise Failure(
            f"no trtexec at {where}. On a Jetson: sudo apt install libnvinfer-bin.", MISSING
        )
    return Path(found)


def trtexec_version(program: Path) -> tuple[int, int, int]:
    """Return the version that the program writes on its first line.

    Raises:
        Failure: it does not say.
    """
    result = subprocess.run(
        [str(program), "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    match = _VERSION.search(result.stdout + result.stderr)
    if not match:
        raise Failure(f"'{program}' does not say which TensorRT it is.", MISSING)
    digits = match.group(1)
    if "." in digits:
        return version_from_text(digits)
    if len(digits) == 4:  # 8601; from 10 on two digits each
        return version_from_text(f"{digits[0]}.{digits[1]}.{int(digits[2:])}")
    return version_from_text(f"{digits[:-4]}.{int(digits[-4:-2])}.{int(digits[-2:])}")


def build_flags(
    request: EngineRequest, engine: Path, timing_cache: Path, version: tuple[int, int, int]
) -> list[str]:
    """Return the flags with which this version builds the request into the file `engine`."""
    flags = [
        f"--onnx={request.path}",
        f"--saveEngine={engine}",
        f"--memPoolSize=workspace:{request.workspace_bytes >> 20}",
        f"--timingCacheFile={timing_cache}",
        "--profilingVerbosity=detailed",
        "--skipInference",
    ]
    if "STRONGLY_TYPED" in request.plan.network_flags and STRONG_SINCE <= version < WEAK_UNTIL:
        flags.append("--stronglyTyped")  # from 11 on there is nothing else
    flags += [f"--{name.lower()}" for name in request.plan.builder_flags]
    dynamic = [spec for spec in request.inputs if spec.is_dynamic]
    if dynamic:
        flags.append("--minShapes=" + _shapes((s.name, s.minimum) for s in dynamic))
        flags.append("--optShapes=" + _shapes((s.name, s.optimum) for s in dynamic))
        flags.append("--maxShapes=" + _shapes((s.name, s.maximum) for s in dynamic))
    return flags


def timing_flags(
    engine: Path, inputs: Sequence[InputSpec], times: Path, version: tuple[int, int, int]
) -> list[str]:
    """Return the flags with which this version times an engine with a CUDA graph."""
    flags = [
        f"--loadEngine={engine}",
        "--warmUp=500",
        "--duration=10",
        "--percentile=50,95,99",
        f"--exportTimes={times}",
    ]
    if version < WEAK_UNTIL:  # the defaults from 11 on
        flags += ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"]
    dynamic = [spec for spec in inputs if spec.is_dynamic]
    if dynamic:
        flags.append("--shapes=" + _shapes((spec.name, spec.optimum) for spec in dynamic))
    return flags


def run_trtexec(program: Path, flags: Sequence[str], exit_code: int = BUILD) -> None:
    """Run the program to its end.

    Raises:
        Failure: it fails; with its last line that speaks of an error.
    """
    try:
        result = subprocess.run(
            [str(program), *flags],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(f"cannot run '{program}': {error}.", exit_code) from error
    if result.returncode:
        lines = (result.stdout + result.stderr).splitlines()
        errors = [line for line in lines if "[E]" in line] or lines or ["no word"]
        raise Failure(
            f"'{program.name} {' '.join(flags)}' ended with {result.returncode}: "
            f"{' '.join(errors[-1].split())}.",
            exit_code,
        )


def times_row(path: Path) -> dict[str, Any]:
    """Return the latency row of what `--exportTimes` wrote: GPU compute time of every inference.

    Raises:
        Failure: the file is not what trtexec writes.
    """
    try:
        rows: Sequence[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        samples = [float(row["computeMs"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"cannot read trtexec's times '{path}': {error!r}.", MEASUREMENT) from error
    if not samples:
        raise Failure(f"trtexec timed nothing: '{path}' is empty.", MEASUREMENT)
    return latency_row("trtexec", samples, cuda_graph=True)


def _shapes(items: Any) -> str:
    return ",".join(f"{name}:{'x'.join(str(size) for size in shape)}" for name, shape in items)
