"""A profile taken on a device over ssh: copied, checked and timed there, the report made here.

What runs there is `onboard`; the connection is `session`'s; rounds, ratios and their intervals are
those of `vitdeploy.profiling`. Nothing is left on the device but files by hash, which a second run
will need again.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitdeploy.bundle import Artifact, Bundle, load_bundle, verify
from vitdeploy.checking import compare_with_golden
from vitdeploy.device.building import TRT_FOLDER
from vitdeploy.documents import report_of_bundle
from vitdeploy.errors import DataError, ExportError, UnsupportedError, UsageError
from vitdeploy.profiling import ProfileOptions, report_of_profile
from vitdeploy.profiling.energy_use import Figure
from vitdeploy.profiling.options import require_valid
from vitdeploy.profiling.results import OpenPart, Timed, result_of
from vitdeploy.profiling.rounds import Cell, run_rounds
from vitdeploy.profiling.statistics import round_medians, spread_percent
from vitdeploy.profiling.subjects import sources_of
from vitdeploy.progress import Progress, SilentProgress
from vitdeploy.remote.address import SshAddress
from vitdeploy.remote.copying import (
    DeviceFile,
    copy_files,
    files_of_artifact,
    files_of_package,
)
from vitdeploy.remote.facts import device_environment, machine_row
from vitdeploy.remote.session import RemoteSession
from vitdeploy.remote.station import RemoteRunner, RemoteStation
from vitdeploy.report import FidelityRow, GateRow, Report, summary
from vitdeploy.report.profile import ProfileResult

_BY_PYTHON = ("onnx", "openvino")
"""Targets whose engines the device's own Python runs."""
_BY_PACKAGE = "trt"
"""The target that its package builds, checks and times by itself."""
_ENERGY_SECONDS = 1.0
"""Of each pause and each load; counters of power tell a mean over some tens of milliseconds."""


@dataclass(frozen=True)
class RemoteOptions:
    """What is asked of the device beside a measurement."""

    python: str = "python3"
    """What runs there: 3.8 or newer, with the artefacts' engines."""
    power_mode: str | None = None
    """nvpmodel's, set while we measure and then put back; as it is where None."""
    lock_clocks: bool = False
    """Run jetson_clocks, and restore what was before."""


@dataclass(frozen=True)
class _Subject:
    """One artefact, loaded and warm on the device."""

    bundle: Bundle
    artifact: Artifact
    station: RemoteStation
    part: OpenPart


@dataclass(frozen=True)
class _Visit:
    """A device we are connected to, and how to measure there."""

    session: RemoteSession
    options: ProfileOptions
    told: Progress
    before: Mapping[str, Any]
    """The device's facts on arrival."""


def profile_over_ssh(
    artifacts: Sequence[str | Path],
    address: SshAddress,
    options: ProfileOptions | None = None,
    wishes: RemoteOptions | None = None,
    progress: Progress | None = None,
) -> Report:
    """Return fidelity to the golden outputs, latency, load and energy of bundles on a device.

    Ratios are against the first artefact. A gate that fails (the golden outputs) is no exception:
    see `Report.passed`. What TensorRT's package built and measured is the report's `device`.

    Args:
        artifacts: bundles; every file's hash is verified here first.
        address: of the device.
        options: how to measure; its `device` is not read.
        wishes: what else is asked of the device.
        progress: told of copying and timing.

    Raises:
        UsageError: a path is no bundle, it has a target that no device runs over ssh, or an
            option does not fit a device.
        UnsupportedError: a tool, an engine or Python is missing on the device.
        DataError: it cannot be reached, the connection broke, or its disk is full.
        ExportError: an engine there refuses an artefact, or TensorRT builds none.
    """
    told, asked = progress or SilentProgress(), wishes or RemoteOptions()
    how = replace(options or ProfileOptions(), device="cpu")
    _require_fitting(how)
    bundles = [_verified_bundle(Path(path)) for path in artifacts]
    packaged = _one_packaged(bundles)
    told.stage(f"connect to {address}")
    with RemoteSession(address, asked.python) as session:
        visit = _Visit(session, how, told, session.ask("describe").values)
        session.ask("tune", power_mode=asked.power_mode, lock_clocks=asked.lock_clocks)
        told.stage("copy")
        copied = _copy(visit, bundles)
        told.stage("load")
        subjects = [s for n, bundle in enumerate(bundles) for s in _open(visit, n, bundle)]
        told.stage("check")
        fidelity, gates = _check(bundles, subjects)
        result = _measure(visit, subjects) if subjects else None
        built = _build(visit, asked.python) if packaged else None
        after = session.ask("describe").values
    note = f"{summary.format_bytes(copied)} copied to the device; the rest was there."
    found: dict[str, Any] = {
        "environment": device_environment(visit.before, after),
        "fidelity": tuple(fidelity),
        "gates": (*gates, *([_engines_gate(built)] if built else [])),
        "device": built,
    }
    if result is None:
        assert packaged is not None
        report = report_of_bundle(packaged, (), ())
        return report.model_copy(update={**found, "notes": (note,)})
    result = result.model_copy(update={"environment": found["environment"]})
    report = report_of_profile(result)
    return report.model_copy(update={**found, "notes": (*report.notes, note)})


def _require_fitting(options: ProfileOptions) -> None:
    require_valid(options)
    unfit = {
        "--streams": options.streams != (1,),
        "--isolate": options.is_isolated,
        "--roofline": options.with_roofline,
        "--random-weights": options.random_weights,
        "--image-size": options.image_size is not None,
    }
    if any(unfit.values()):
        names = ", ".join(name for name, is_asked in unfit.items() if is_asked)
        raise UsageError(
            f"{names}: not with --device ssh://..., where one process runs one call of a bundle "
            "at a time. Leave it out, or run vitdeploy on the device itself."
        )


def _verified_bundle(path: Path) -> Bundle:
    if not path.is_dir():
        raise UsageError(
            f"'{path}' is no folder; --device ssh://... takes bundles, whose golden outputs show "
            "that the device computes the same. Make one with `vitdeploy export` or `quantize`."
        )
    bundle = load_bundle(path)
    verify(bundle)
    targets = {artifact.target for artifact in bundle.artifacts()}
    if not targets:
        raise DataError(f"bundle '{path}' lists no artefact; export it again.")
    unknown = targets - {*_BY_PYTHON, _BY_PACKAGE}
    if unknown:
        raise UsageError(
            f"bundle '{path}' has {', '.join(sorted(unknown))}; over ssh go "
            f"{', '.join(_BY_PYTHON)} and {_BY_PACKAGE}. Export with one of these targets."
        )
    return bundle


def _one_packaged(bundles: Sequence[Bundle]) -> Bundle | None:
    """Return the bundle with a TensorRT package, where there is one."""
    packaged = [bundle for bundle in bundles if bundle.artifacts(_BY_PACKAGE)]
    if len(packaged) > 1:
        names = ", ".join(bundle.path.name for bundle in packaged)
        raise UsageError(f"{names} are to be built with TensorRT; give one such bundle a call.")
    return packaged[0] if packaged else None


def _by_python(bundle: Bundle) -> list[Artifact]:
    return [artifact for artifact in bundle.artifacts() if artifact.target in _BY_PYTHON]


def _folder(number: int, artifact: Artifact) -> str:
    """Return an artefact's folder on the device, which is its name in requests, too."""
    return f"{number}-{artifact.target}-{artifact.part}"


def _copy(visit: _Visit, bundles: Sequence[Bundle]) -> int:
    """Bring everything in place; return the bytes that had to be copied."""
    files: list[DeviceFile] = []
    for number, bundle in enumerate(bundles):
        for artifact in _by_python(bundle):
            files += files_of_artifact(bundle, artifact, _folder(number, artifact))
        if bundle.artifacts(_BY_PACKAGE):
            files += files_of_package(bundle, TRT_FOLDER, TRT_FOLDER)
    return copy_files(visit.session, files, visit.told.step)


def _open(visit: _Visit, number: int, bundle: Bundle) -> list[_Subject]:
    """Load a bundle's artefacts there and warm them up."""
    if not _by_python(bundle):
        return []
    sources = sources_of(str(bundle.path), visit.options, bundle.path)
    by_path = {source.path: source for source in sources}
    subjects = []
    for artifact in _by_python(bundle):
        source = by_path[artifact.path]
        place = f"{_folder(number, artifact)}/{artifact.path.name}"
        station = RemoteStation(visit.session, source, place, visit.options.threads)
        loaded = station.open()
        cells = tuple(
            Cell(station, batch, 1, station.warm_up(batch))
            for batch in source.batches(visit.options.batches)
        )
        part = OpenPart(source, station, loaded, cells, station.peaks())
        subjects.append(_Subject(bundle, artifact, station, part))
    return subjects


def _check(
    bundles: Sequence[Bundle], subjects: Sequence[_Subject]
) -> tuple[list[FidelityRow], list[GateRow]]:
    """Compare what the device computes with the bundles' golden outputs."""
    fidelity: list[FidelityRow] = []
    gates: list[GateRow] = []
    for bundle in bundles:
        runners = {s.artifact.path: s.station.runner() for s in subjects if s.bundle is bundle}

        def open_there(
            artifact: Artifact, runners: Mapping[Path, RemoteRunner] = runners
        ) -> RemoteRunner:
            return runners[artifact.path]

        for target in dict.fromkeys(artifact.target for artifact in _by_python(bundle)):
            rows, own = compare_with_golden(bundle, bundle.artifacts(target), open_there)
            label = f"{bundle.path.name}:{target}"
            fidelity += [row.model_copy(update={"target": label}) for row in rows]
            gates += [
                gate.model_copy(update={"name": gate.name.replace(f":{target}:", f":{label}:")})
                for gate in own
            ]
    return fidelity, gates


def _measure(visit: _Visit, subjects: Sequence[_Subject]) -> ProfileResult:
    """Time all artefacts in turns, then measure their energy, idle pauses in between."""
    visit.told.stage("latency")
    parts = [subject.part for subject in subjects]
    cells = [cell for part in parts for cell in part.cells]
    started = time.perf_counter()
    slots = run_rounds(cells, visit.options.seconds, visit.told.step)
    seconds = time.perf_counter() - started
    idle, energies = _energy(visit, subjects)
    timed = [Timed(*one) for one in zip(cells, slots, energies, strict=True)]
    peaks = [subject.station.peaks() for subject in subjects]
    device = str(visit.session.address)
    rows = result_of(parts, timed, peaks, replace(visit.options, device=device))
    machine = machine_row(spread_percent(round_medians(slots[0])), visit.before, idle)
    return ProfileResult(
        reference=parts[0].source.name,
        device=device,
        is_isolated=False,
        seconds=seconds,
        timings=rows.timings,
        speedup=rows.speedup,
        loads=rows.loads,
        machine=machine,
        roofline_reason="not measured over ssh",
        notes=tuple(f"noisy device: {finding}" for finding in machine.findings),
    )


def _energy(visit: _Visit, subjects: Sequence[_Subject]) -> tuple[Figure, list[Figure]]:
    """Return watts while nothing runs, and millijoules an image of each cell."""
    cells = [(s.station.energy_key(c.batch), c.batch) for s in subjects for c in s.part.cells]
    keys = [key for key, _ in cells]
    answer = visit.session.ask("energy", cells=keys, seconds=_ENERGY_SECONDS).values
    if answer["source"] is None:
        none: Figure = (None, answer["source_reason"])
        return none, [none] * len(cells)
    each = zip(answer["mj_per_run"], cells, strict=True)
    return (answer["idle_watts"], None), [(mj / batch, None) for mj, (_, batch) in each]


def _build(visit: _Visit, python: str) -> dict[str, Any]:
    """Build the TensorRT package there; return its device report.

    Raises:
        UnsupportedError: TensorRT or a GPU is missing there.
        ExportError: TensorRT builds no engine.
        DataError: a measurement failed.
    """
    visit.told.stage("build")
    batch = visit.options.batches[0]
    arguments = [] if batch == 1 else ["--shapes", f"batch={batch}"]
    session = visit.session
    answer = session.ask("build", folder=TRT_FOLDER, python=python, options=arguments).values
    if answer["report"] is None:
        kinds = {5: ExportError, 6: UnsupportedError}
        raise kinds.get(answer["exit_code"], DataError)(
            f"{session.address}: build.sh ended with {answer['exit_code']}: {session.last_words}"
        )
    return dict(answer["report"])


def _engines_gate(built: Mapping[str, Any]) -> GateRow:
    """Return whether every part has an engine that does what the model does."""
    faithful = sum(bool(part["passed"]) for part in built["parts"])
    wanted = len(built["parts"])
    return GateRow(
        name="faithful_engines:trt", limit=wanted, value=faithful, passed=faithful == wanted
    )
