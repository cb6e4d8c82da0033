"""Which ways of building a part are tried, and which engine is kept: the fastest faithful one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .candidates import Attempt, BuildOptions, Candidate, DeviceTools, try_candidate
from .contents import InputSpec, PackageContents, PartSpec
from .engine import EngineRequest
from .failure import MISMATCH, MISSING, USAGE, Failure, say
from .versions import plan_builds

_MIB = 1 << 20
_WORKSPACE_WITHOUT_CUDA = 1024 * _MIB


@dataclass(frozen=True)
class PartOutcome:
    """All that was tried for one part."""

    part: str
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    reason: str
    failure: Failure | None
    """Why there is no engine, or none that was compared."""


def build_part(
    tools: DeviceTools,
    contents: PackageContents,
    part: PartSpec,
    options: BuildOptions,
    scratch: Path,
) -> PartOutcome:
    """Return what was tried and chosen for one part.

    Raises:
        Failure: the package has nothing that this TensorRT builds, or the options do not fit it.
    """
    inputs = sized_inputs(part.inputs, options.sizes or {})
    workspace = workspace_bytes(tools, options)
    candidates: list[Candidate] = []
    refusals: list[Failure] = []
    for precision in _precisions(part, options.engine):
        try:
            plans = plan_builds(part.graphs, precision, tools.version)
        except Failure as refusal:
            say(f"{part.name}: {refusal}")
            refusals.append(refusal)
            continue
        for plan in plans:
            path = contents.folder / plan.graph.file
            cache_path = _cache_path(contents.folder, tools)
            cache = cache_path.read_bytes() if cache_path.is_file() else b""
            request = EngineRequest(path, plan, inputs, workspace, cache)
            attempt = Attempt(contents, part, request, scratch, cache_path)
            candidates.append(try_candidate(tools, attempt, options))
            if candidates[-1].engine is not None:
                break  # what follows is the fallback
    if not candidates:
        raise refusals[-1]
    return _choose(part.name, candidates)


def sized_inputs(inputs: Sequence[InputSpec], sizes: Mapping[str, int]) -> tuple[InputSpec, ...]:
    """Return the inputs with the optimum that the user asked for.

    Raises:
        Failure: no input has such a dimension, or it does not take this size.
    """
    known = {size for spec in inputs for size in spec.shape if isinstance(size, str)}
    for name in sizes:
        if name not in known:
            shown = ", ".join(sorted(known)) or "none: all shapes are fixed"
            raise Failure(f"--shapes names '{name}'; dynamic dimensions are {shown}.", USAGE)
    changed = []
    for spec in inputs:
        optimum = list(spec.optimum)
        for axis, dimension in enumerate(spec.shape):
            size = sizes.get(dimension) if isinstance(dimension, str) else None
            if size is None:
                continue
            if not spec.minimum[axis] <= size <= spec.maximum[axis]:
                raise Failure(
                    f"--shapes {dimension}={size}: '{spec.name}' takes {spec.minimum[axis]} to "
                    f"{spec.maximum[axis]}.",
                    USAGE,
                )
            optimum[axis] = size
        changed.append(dataclasses.replace(spec, optimum=tuple(optimum)))
    return tuple(changed)


def workspace_bytes(tools: DeviceTools, options: BuildOptions) -> int:
    """Return the room the builder gets: what was asked for, never more than what is free.

    Without a wish it is half of what is free: on a Jetson the builder's own memory on the host is
    the same memory.
    """
    asked = options.workspace_mib * _MIB if options.workspace_mib else None
    if tools.cuda is None:
        return asked or _WORKSPACE_WITHOUT_CUDA
    free = tools.cuda.free_bytes()
    if asked is None:
        return free // 2 // _MIB * _MIB
    if asked > free:
        say(f"--workspace-mib {options.workspace_mib}: {free // _MIB} MiB are free; using them.")
    return min(asked, free // _MIB * _MIB)


def _precisions(part: PartSpec, engine: str) -> tuple[str, ...]:
    """Return what to try: with `auto` all that is not FP32, which is there for lack of others."""
    if engine != "auto":
        return (engine,)
    return tuple(name for name in part.precisions if name != "fp32") or part.precisions


def _cache_path(folder: Path, tools: DeviceTools) -> Path:
    version = ".".join(str(number) for number in tools.version)
    card = f"-sm{tools.cuda.capability().replace('.', '')}" if tools.cuda else ""
    return folder / f"timing-{version}{card}.cache"


def _choose(part: str, candidates: Sequence[Candidate]) -> PartOutcome:
    usable = [item for item in candidates if item.engine is not None]
    if not usable:
        failures = [item.failure for item in candidates if item.failure]
        wrong = [failure for failure in failures if failure.exit_code == MISMATCH]
        failure = (wrong or failures)[0]
        return PartOutcome(part, tuple(candidates), None, "no engine is faithful", failure)
    timed = [(item.p50_ms, index) for index, item in enumerate(usable) if item.p50_ms is not None]
    if len(usable) == 1:
        chosen, reason = usable[0], "the only one that can be used"
    elif len(timed) == len(usable):
        chosen, reason = usable[min(timed)[1]], "the fastest faithful one"
    else:
        chosen, reason = usable[-1], "nothing was timed; the lowest precision that is faithful"
    unchecked = None
    if chosen.row["status"] == "unchecked":
        unchecked = Failure(
            f"{part}: the engine was built with trtexec alone and not compared with the golden "
            "outputs. Install Python's tensorrt and build again, or accept it with --no-check.",
            MISSING,
        )
    return PartOutcome(part, tuple(candidates), chosen, reason, unchecked)


def outcome_row(outcome: PartOutcome, engine: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the part's place in the report; `engine` is the file that was kept."""
    chosen = outcome.chosen
    return {
        "part": outcome.part,
        "passed": outcome.failure is None,
        "chosen": chosen.plan.graph.precision if chosen else None,
        "chosen_reason": outcome.reason,
        "engine": engine,
        "candidates": [dict(item.row) for item in outcome.candidates],
    }
