"""One way to build one part, tried: built, compared with the golden outputs, timed, inspected.

Which ways are tried, and which engine is kept, is decided in `choice`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contents import GoldenCase, InputSpec, PackageContents, PartSpec, read_stored
from .cuda import Cuda
from .engine import BuiltEngine, EngineRequest, build_engine, load_engine, message_log
from .execution import (
    HostTensor,
    bound_engine,
    measure_latency,
    measure_layers,
    missing_latency_row,
)
from .failure import MEASUREMENT, MISMATCH, Failure, say
from .fidelity import score_output, score_row
from .inspector import count_rows, inspect_engine
from .tensors import repeated, size_bytes, values_from_bytes
from .trtexec import build_flags, run_trtexec, times_row, timing_flags
from .versions import BuildPlan

NOT_COMPARED = "built with trtexec alone, which compares nothing; Python's tensorrt is missing"


@dataclass(frozen=True)
class BuildOptions:
    """What the user asked for."""

    engine: str = "auto"
    """`auto`, or a precision of the package."""
    workspace_mib: int | None = None
    is_timed: bool = True
    trtexec: str | None = None
    """None: not used; empty: wherever it is found."""
    sizes: Mapping[str, int] | None = None
    """Optimum by the name of a dynamic dimension."""
    allows_unchecked: bool = False


@dataclass(frozen=True)
class DeviceTools:
    """What this machine builds with."""

    version: tuple[int, int, int]
    trt: Any
    """The module `tensorrt`; None where trtexec builds alone."""
    cuda: Cuda | None
    trtexec: Path | None


@dataclass(frozen=True)
class Candidate:
    """What became of one plan; `row` is its place in the report."""

    plan: BuildPlan
    row: Mapping[str, Any]
    engine: Path | None
    """A file in the scratch folder, where it may be kept."""
    failure: Failure | None = None

    @property
    def p50_ms(self) -> float | None:
        """Return the shortest median, None where nothing was timed."""
        medians = [row["p50_ms"] for row in self.row.get("latency", ()) if row["p50_ms"]]
        return min(medians) if medians else None


@dataclass(frozen=True)
class Attempt:
    """One part on its way through one plan."""

    contents: PackageContents
    part: PartSpec
    request: EngineRequest
    scratch: Path
    cache_path: Path

    @property
    def engine_path(self) -> Path:
        """Return where the engine lies until it is kept."""
        graph = self.request.plan.graph
        return self.scratch / f"{self.part.name}.{graph.precision}.{graph.typing}.engine"


def try_candidate(tools: DeviceTools, attempt: Attempt, options: BuildOptions) -> Candidate:
    """Return what became of the attempt; a failure is in it, not raised."""
    plan = attempt.request.plan
    row: dict[str, Any] = {
        "precision": plan.graph.precision,
        "typing": plan.graph.typing,
        "file": plan.graph.file,
        "network_flags": list(plan.network_flags),
        "builder_flags": list(plan.builder_flags),
        "workspace_bytes": attempt.request.workspace_bytes,
        "error": None,
    }
    say(f"{attempt.part.name}: building {plan.graph.file} ...")
    try:
        if tools.trt is None or tools.cuda is None:
            _try_with_trtexec(tools, attempt, options, row)
        else:
            _try_with_python(tools.trt, tools.cuda, attempt, options, row)
            if tools.trtexec and options.is_timed:
                row["latency"].append(_second_opinion(tools, attempt))
    except Failure as failure:
        status = "mismatch" if failure.exit_code == MISMATCH else "failed"
        row.update(status=status, error=str(failure))
        say(f"{attempt.part.name}: {failure}")
        return Candidate(plan, row, None, failure)
    row["status"] = "faithful" if tools.trt is not None else "unchecked"
    return Candidate(plan, row, attempt.engine_path)


def _try_with_python(
    trt: Any, cuda: Cuda, attempt: Attempt, options: BuildOptions, row: dict[str, Any]
) -> None:
    built = build_engine(trt, attempt.request)
    _keep_timing_cache(attempt.cache_path, built)
    row.update(build_seconds=built.build_seconds, engine_bytes=len(built.data))
    attempt.engine_path.write_bytes(built.data)
    log = message_log(trt)
    engine = load_engine(trt, built.data, log)
    row["golden"] = _compare(trt, cuda, engine, attempt)
    if not row["golden"]["passed"]:
        bad = [item for item in row["golden"]["outputs"] if not item["passed"]]
        raise Failure(_mismatch_text(attempt, bad), MISMATCH)
    row["latency"] = []
    times_ms: list[tuple[str, float]] = []
    if options.is_timed:
        feeds = timing_feeds(attempt.contents.folder, attempt.part, attempt.request.inputs)
        with bound_engine(trt, cuda, engine, feeds) as bound:
            row["latency"] = measure_latency(bound)
        with bound_engine(trt, cuda, engine, feeds) as bound:
            times_ms = measure_layers(trt, bound)
    row.update(_layer_rows(trt, engine, times_ms))


def _layer_rows(trt: Any, engine: Any, times_ms: list[tuple[str, float]]) -> dict[str, Any]:
    """Return what the engine consists of; an engine that cannot be read is none the worse."""
    try:
        return count_rows(inspect_engine(trt, engine), times_ms)
    except Failure as failure:
        return {"layers": [], "layers_reason": str(failure)}


def _second_opinion(tools: DeviceTools, attempt: Attempt) -> dict[str, Any]:
    """Return trtexec's latency row; CUDA events have timed the engine already."""
    try:
        return _time_with_trtexec(tools, attempt)
    except Failure as failure:
        return missing_latency_row("trtexec", str(failure), cuda_graph=True)


def _try_with_trtexec(
    tools: DeviceTools, attempt: Attempt, options: BuildOptions, row: dict[str, Any]
) -> None:
    if tools.trtexec is None:
        raise ValueError("neither tensorrt nor trtexec")
    start = time.monotonic()
    flags = build_flags(attempt.request, attempt.engine_path, attempt.cache_path, tools.version)
    run_trtexec(tools.trtexec, flags)
    if not attempt.engine_path.is_file():
        raise Failure("trtexec ended well but wrote no engine.", MEASUREMENT)
    row.update(
        build_seconds=time.monotonic() - start,
        engine_bytes=attempt.engine_path.stat().st_size,
        golden=None,
        golden_reason=NOT_COMPARED,
        latency=[_time_with_trtexec(tools, attempt)] if options.is_timed else [],
    )


def _time_with_trtexec(tools: DeviceTools, attempt: Attempt) -> dict[str, Any]:
    if tools.trtexec is None:
        raise ValueError("no trtexec")
    times = attempt.scratch / "times.json"
    flags = timing_flags(attempt.engine_path, attempt.request.inputs, times, tools.version)
    run_trtexec(tools.trtexec, flags, MEASUREMENT)
    return times_row(times)


def _compare(trt: Any, cuda: Cuda, engine: Any, attempt: Attempt) -> dict[str, Any]:
    """Return the golden verdict: every output over all cases."""
    expected: dict[str, list[tuple[float, ...]]] = {}
    seen: dict[str, list[tuple[float, ...]]] = {}
    folder = attempt.contents.folder
    for case in attempt.part.golden:
        with bound_engine(trt, cuda, engine, _golden_feeds(folder, case)) as bound:
            outputs = bound.run()
        for name, stored in case.reference.items():
            if name not in outputs or outputs[name].shape != stored.shape:
                got = outputs[name].shape if name in outputs else "nothing"
                raise Failure(
                    f"the engine gives {got} for '{name}'; the golden output is {stored.shape}.",
                    MISMATCH,
                )
            golden = values_from_bytes(read_stored(folder, stored), stored.dtype)
            values = values_from_bytes(outputs[name].data, outputs[name].dtype)
            expected.setdefault(name, []).extend(_images(golden, stored.shape))
            seen.setdefault(name, []).extend(_images(values, stored.shape))
    limits = attempt.request.plan.graph.min_sqnr_db
    rows = [
        score_row(name, score_output(expected[name], seen[name]), limits[name]) for name in expected
    ]
    images = max(len(items) for items in expected.values())
    return {"passed": all(row["passed"] for row in rows), "images": images, "outputs": rows}


def timing_feeds(
    folder: Path, part: PartSpec, inputs: tuple[InputSpec, ...]
) -> dict[str, HostTensor]:
    """Return inputs of the optimum shapes, filled with golden values over and over."""
    feeds = {}
    for spec in inputs:
        stored = part.golden[0].inputs[spec.name]
        data = read_stored(folder, stored)
        count_bytes = size_bytes(stored.dtype, spec.optimum)
        feeds[spec.name] = HostTensor(stored.dtype, spec.optimum, repeated(data, count_bytes))
    return feeds


def _golden_feeds(folder: Path, case: GoldenCase) -> dict[str, HostTensor]:
    return {
        name: HostTensor(stored.dtype, stored.shape, read_stored(folder, stored))
        for name, stored in case.inputs.items()
    }


def _images(values: tuple[float, ...], shape: tuple[int, ...]) -> list[tuple[float, ...]]:
    """Return one flat row an image: the first dimension counts images."""
    count = shape[0] if shape else 1
    size = len(values) // max(1, count)
    return [values[index * size : (index + 1) * size] for index in range(count)]


def _mismatch_text(attempt: Attempt, bad: list[dict[str, Any]]) -> str:
    def shown(item: Mapping[str, Any]) -> str:
        if item["sqnr_db"] is None:
            return f"'{item['output']}': {item['sqnr_db_reason']}"
        return (
            f"'{item['output']}': {item['sqnr_db']:.1f} dB from the golden output, at least "
            f"{item['min_sqnr_db']:.1f} dB are asked"
        )

    return (
        f"the engine of {attempt.request.plan.graph.file} does not do what the model does: "
        f"{'; '.join(shown(item) for item in bad)}. It was not kept."
    )


def _keep_timing_cache(path: Path, built: BuiltEngine) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(built.timing_cache)
    temporary.replace(path)
