"""`profile`: bundles and ONNX files timed in turns in one process."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitdeploy.bundle import Artifact, Bundle, load_bundle
from vitdeploy.documents import Measured, profile_report
from vitdeploy.errors import DataError, UsageError
from vitdeploy.golden import read_golden
from vitdeploy.joined import asked_from_golden, features_of, follows, one_prompt
from vitdeploy.measure import Subject, measure_latency
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.report import Report
from vitdeploy.runner import Runner
from vitdeploy.targets import load_target
from vitdeploy.targets.onnx import OrtRunner


@dataclass(frozen=True)
class _Entry:
    """One thing to time."""

    target: str
    part: str
    precision: str
    runner: Runner
    feeds: dict[str, np.ndarray]
    batch: int
    bytes: int


def profile(
    artifacts: Sequence[str | Path],
    *,
    batch: int = 1,
    seconds: float = 10.0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Return latency, throughput and size of each artefact, measured interleaved.

    Speed-ups are against the first artefact.

    Args:
        artifacts: bundle folders and `.onnx` files.
        batch: images per run; artefacts of a fixed batch keep theirs.
        seconds: budget for all.
        threads: as many as each engine likes where None.
        progress: told of the measurement's steps.

    Raises:
        UsageError: a path is neither a bundle nor an ONNX file, or `batch` is below 1.
        ExportError: an engine cannot load an artefact.
        DataError: an ONNX file has an input whose size is unknown.
    """
    if batch < 1 or not artifacts or not 0 <= seconds < math.inf or (threads or 1) < 1:
        raise UsageError(
            f"profile needs an artefact, a batch (seen {batch}) and threads (seen {threads}) of at "
            f"least 1, and finite seconds (seen {seconds}) of at least 0."
        )
    told = progress or SilentProgress()
    told.stage("latency")
    with ExitStack() as stack:
        entries = [e for path in artifacts for e in _open(Path(path), batch, threads)]
        for entry in entries:
            stack.enter_context(entry.runner)
        subjects = [Subject(f"{e.target}/{e.part}", e.runner, e.feeds, e.batch) for e in entries]
        if len({subject.name for subject in subjects}) < len(subjects):
            raise UsageError("two artefacts have the same name; rename one of the folders.")
        timings = measure_latency(subjects, seconds, told.step)
        rows = [
            Measured(
                e.target, e.part, e.runner.engine, e.runner.threads, e.precision, timings[s.name]
            )
            for e, s in zip(entries, subjects, strict=True)
        ]
    sizes = dict.fromkeys((entry.target for entry in entries), 0)
    for entry in entries:
        sizes[entry.target] += entry.bytes
    return profile_report(rows, sizes)


def _open(path: Path, batch: int, threads: int | None) -> list[_Entry]:
    if path.suffix == ".onnx" and path.is_file():
        return [_open_onnx(path, batch, threads)]
    bundle = load_bundle(path)
    if not bundle.artifacts():
        raise DataError(f"bundle '{path}' lists no artefact; export it again.")
    entries = []
    for artifact in bundle.artifacts():
        fixed = artifact.inputs[0].shape[0]
        size = fixed if isinstance(fixed, int) else batch
        feeds, size = _feeds(bundle, artifact, size)
        runner = load_target(artifact.target).open(artifact, threads)
        name = f"{bundle.path.name}:{artifact.target}"
        entries.append(
            _Entry(name, artifact.part, artifact.precision, runner, feeds, size, artifact.run_bytes)
        )
    return entries


def _feeds(bundle: Bundle, artifact: Artifact, batch: int) -> tuple[dict[str, np.ndarray], int]:
    """Return golden inputs of `batch` images; of a part that reads prompts, those of one prompt."""
    golden = read_golden(bundle.path, artifact.part).inputs
    others = [other for other in bundle.artifacts(artifact.target) if other.part != artifact.part]
    made = {other.part: read_golden(bundle.path, other.part).outputs for other in others}
    if not follows(artifact.inputs, made):
        return {name: np.resize(v, (batch, *v.shape[1:])) for name, v in golden.items()}, batch
    features = {n: v[:1] for n, v in features_of(artifact.inputs, made).items()}
    return {**one_prompt(asked_from_golden(golden)[0]), **features}, 1


def _open_onnx(path: Path, batch: int, threads: int | None) -> _Entry:
    """Return an ONNX file from anywhere, fed with seeded normal numbers of its input's shape."""
    runner = OrtRunner(path, threads)
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for tensor in runner.inputs:
        if not all(isinstance(size, int) for size in tensor.shape[1:]) or not tensor.shape:
            raise DataError(
                f"input '{tensor.name}' of '{path.name}' has shape {tensor.shape}; only the batch "
                "may be dynamic. Fix the other dimensions first."
            )
        first = tensor.shape[0]
        batch = first if isinstance(first, int) else batch
        shape = (batch, *(int(size) for size in tensor.shape[1:]))
        feeds[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return _Entry(path.name, "model", "unknown", runner, feeds, batch, path.stat().st_size)
