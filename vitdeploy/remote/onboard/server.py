"""The far side's main loop: one request, one answer, until the connection ends.

Whatever ends it (the last request, an error, a signal, a connection that breaks), the job's folder
is removed, engines are freed and power mode and clocks are as they were.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from typing import IO, Any

from vitdeploy.energy import EnergySource, find_energy_source

from .cache import DeviceError, JobFolder, cache_folder
from .engines import Engine, import_engine, open_engine
from .frames import read_frame, write_frame
from .machine import Tuning, describe_machine
from .timing import forget_peak, resident_bytes, slot, warm_up

GREETING = b"vitdeploy onboard 1\n"
"""Before it, a login script may have printed anything."""
_DEVICE_REPORT = "device_report.json"
_POLL_SECONDS = 0.2
_SILENT_SECONDS = 600.0
"""A network that was cut tells nothing: after so long without a request the other side is gone."""


class Gone(Exception):  # noqa: N818 - no error: the other side has left
    """The connection ended while we worked."""


class Server:
    """Answers requests on one connection; each method `do_<name>` is one."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes], job: JobFolder) -> None:
        self._requests = requests
        self._answers = answers
        self._job = job
        self._tuning = Tuning()
        self._engines: dict[str, Engine] = {}
        self._warm: dict[Any, Any] = {}
        """By (name, batch): feeds, and the seconds of a run."""
        self._resident = 0
        self._peak_reason: str | None = "nothing was opened"

    def serve(self) -> None:
        """Answer until the other side ends, is gone, or is silent for too long."""
        with self._tuning:
            while select.select([self._requests], [], [], _SILENT_SECONDS)[0]:
                frame = read_frame(self._requests)
                if frame is None or frame[0]["do"] == "end":
                    return
                try:
                    message, arrays = self._answer(*frame)
                except DeviceError as error:
                    message, arrays = {"error": str(error), "kind": error.kind}, {}
                write_frame(self._answers, message, arrays)

    def _answer(self, request: dict[str, Any], arrays: dict[str, Any]) -> Any:
        method = getattr(self, "do_" + request.pop("do"))
        result = method(arrays=arrays, **request) if arrays else method(**request)
        return result if isinstance(result, tuple) else (result or {}, {})

    def do_describe(self) -> dict[str, Any]:
        """Return the machine's facts."""
        return describe_machine()

    def do_tune(self, power_mode: str | None, lock_clocks: bool) -> None:
        """Set what was asked for until the end."""
        if power_mode is not None:
            self._tuning.set_power_mode(power_mode)
        if lock_clocks:
            self._tuning.lock_clocks(self._job.path)

    def do_missing(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Return the hashes of the files that are not here."""
        return {"missing": self._job.missing(sizes)}

    def do_store(self, sha256: str, size: int) -> None:
        """Keep the file whose bytes follow the request."""
        self._job.store(sha256, size, self._requests)

    def do_place(self, files: Mapping[str, str]) -> None:
        """Put files where engines find them."""
        self._job.place(files)

    def do_open(
        self, name: str, target: str, path: str, threads: int | None, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Load an artefact under `name`."""
        import_engine(target)
        self._resident = resident_bytes(peak=False)
        self._peak_reason = forget_peak()
        engine = open_engine(target, self._job.path / path, threads, settings)
        self._engines[name] = engine
        return {"engine": engine.engine, "threads": engine.threads, "load_ms": engine.load_ms}

    def do_run(self, name: str, arrays: dict[str, Any]) -> Any:
        """Return the outputs for the arrays that came along."""
        return {}, self._engines[name](arrays)

    def do_warm_up(self, name: str, batch: int, arrays: dict[str, Any]) -> dict[str, Any]:
        """Warm an artefact up on the arrays that came along; its slots read them, too."""
        warmth = warm_up(self._engines[name], arrays)
        self._warm[name, batch] = arrays, warmth["run_seconds"]
        return warmth

    def do_slot(self, name: str, batch: int, seconds: float) -> Any:
        """Time an artefact for about `seconds`."""
        feeds, run_seconds = self._warm[name, batch]
        return slot(self._engines[name], feeds, seconds, run_seconds)

    def do_peaks(self) -> dict[str, Any]:
        """Return resident memory since the last artefact was opened."""
        peak = resident_bytes(peak=True)
        return {
            "engine_bytes": max(0, peak - self._resident),
            "process_bytes": peak,
            "reset_reason": self._peak_reason,
        }

    def do_energy(self, cells: list[Any], seconds: float) -> dict[str, Any]:
        """Return watts while nothing runs and millijoules a run of each (name, batch)."""
        source, reason = find_energy_source()
        if source is None:
            return {"source": None, "source_reason": reason}
        try:
            with source:
                return self._energy(source, cells, seconds)
        except (OSError, ValueError) as error:
            return {"source": None, "source_reason": f"{source.name}: {error}"}

    def _energy(self, source: EnergySource, cells: list[Any], seconds: float) -> dict[str, Any]:
        idle_joules, per_run = 0.0, []
        for name, batch in cells:
            # A pause before each, so that idle is seen as warm as the load.
            idle_joules += source.joules(lambda: time.sleep(seconds))
            slots: list[Any] = []

            def load(name: str = name, batch: int = batch, slots: list[Any] = slots) -> None:
                slots.append(self.do_slot(name, batch, seconds))

            joules = source.joules(load)
            per_run.append(1000.0 * joules / len(slots[0]["latencies_ms"]))
        return {
            "source": source.name,
            "idle_watts": idle_joules / (seconds * len(cells)),
            "mj_per_run": per_run,
        }

    def do_build(self, folder: str, python: str, options: list[str]) -> dict[str, Any]:
        """Run a TensorRT package's build.sh; its words go to stderr, its report comes back."""
        place = self._job.path / folder
        process = subprocess.Popen(
            ["sh", str(place / "build.sh"), *options],
            env={**os.environ, "PYTHON": python},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                # It sends nothing while it waits: whatever can be read now is the end.
                if select.select([self._requests], [], [], _POLL_SECONDS)[0]:
                    raise Gone
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        report = place / _DEVICE_REPORT
        text = report.read_text(encoding="utf-8") if report.is_file() else "null"
        return {"exit_code": process.returncode, "report": json.loads(text)}


def main() -> None:
    """Greet and serve on stdin and stdout; what engines print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    with contextlib.suppress(BrokenPipeError, Gone, EOFError):
        answers.write(GREETING)
        try:
            with JobFolder(cache_folder()) as job:
                write_frame(answers, {})
                Server(sys.stdin.buffer, answers, job).serve()
        except DeviceError as error:
            write_frame(answers, {"error": str(error), "kind": error.kind})
        except (Gone, BrokenPipeError, EOFError):
            raise
        except Exception:  # noqa: BLE001 - a bug here is shown, and raised, on the other side
            write_frame(answers, {"error": traceback.format_exc(), "kind": "bug"})
    # Closing what is broken would raise again, and engines may wait for their threads.
    sys.stderr.flush()
    os._exit(0)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
