"""What runs on the device is Python 3.8 with its standard library; its parts, one by one."""

import ast
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.device.test_assemble import runtime_faults
from vitdeploy import energy
from vitdeploy.remote import session
from vitdeploy.remote.onboard import cache, frames, machine, server, timing
from vitdeploy.remote.onboard.cache import DeviceError, JobFolder
from vitdeploy.remote.onboard.engines import Engine

FOLDER = Path(cache.__file__).parent
SENT = [*FOLDER.glob("*.py"), Path(energy.__file__)]
ALLOWED = {"numpy", "onnxruntime", "openvino", "vitdeploy"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted(SENT), ids=lambda path: path.stem)
def test_it_is_python_3_8_and_imports_what_a_device_has(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    assert runtime_faults(tree) == []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert str(node.module).split(".")[0] in ALLOWED
            if str(node.module).startswith("vitdeploy"):
                assert node.module in session._MODULES


def test_every_module_is_sent():
    sent = {name.split(".")[-1] for name in session._MODULES if ".remote." in name}
    assert sent == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}


def test_the_program_runs_without_vitdeploy_and_without_numpy(tmp_path):
    """-S and -E: nothing but the standard library; the far side greets, describes and ends."""
    program = session._program().encode()
    requests = io.BytesIO()
    requests.write(b"%d\n" % len(program) + program)
    frames.write_frame(requests, {"do": "describe"})
    frames.write_frame(requests, {"do": "end"})
    result = subprocess.run(
        [sys.executable, "-S", "-E", "-c", session._BOOT],
        input=requests.getvalue(),
        capture_output=True,
        cwd=tmp_path,
        env={"XDG_CACHE_HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        check=True,
    )
    answers = io.BytesIO(result.stdout)
    assert answers.readline() == session._GREETING
    assert frames.read_frame(answers) == ({}, {})
    facts, _ = frames.read_frame(answers)
    assert facts["python"] == sys.version.split()[0]
    assert list((tmp_path / "vitdeploy" / "jobs").iterdir()) == []


def test_frames_keep_arrays_and_tell_a_connection_that_ended():
    stream = io.BytesIO()
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64)}
    frames.write_frame(stream, {"do": "run"}, arrays)
    whole = stream.getvalue()
    message, found = frames.read_frame(io.BytesIO(whole))
    assert message == {"do": "run"}
    assert all(np.array_equal(found[name], value) for name, value in arrays.items())
    for end in (0, 5, len(whole) - 1):
        assert frames.read_frame(io.BytesIO(whole[:end])) is None
    with pytest.raises(ValueError, match="not a message"):
        frames.read_frame(io.BytesIO(b"7\n"))


def stored(job, content):
    sha256 = hashlib.sha256(content).hexdigest()
    job.store(sha256, len(content), io.BytesIO(content))
    return sha256


def test_a_job_places_files_and_goes_but_its_files_stay(tmp_path):
    with JobFolder(tmp_path) as job:
        sha256 = stored(job, b"weights")
        job.place({"0-onnx/model.onnx": sha256})
        assert (job.path / "0-onnx" / "model.onnx").read_bytes() == b"weights"
    assert not job.path.exists()
    with JobFolder(tmp_path) as job:
        assert job.missing({sha256: 7, "0" * 64: 1}) == ["0" * 64]
        assert job.missing({sha256: 8}) == [sha256]  # cut short: copied again


def test_a_damaged_file_is_not_kept(tmp_path):
    with JobFolder(tmp_path) as job:
        with pytest.raises(DeviceError, match="damaged"):
            job.store("0" * 64, 3, io.BytesIO(b"abc"))
        assert list((tmp_path / "blobs").iterdir()) == []
        assert list(job.path.iterdir()) == []


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../out"])
def test_no_file_leaves_the_job(tmp_path, name):
    with JobFolder(tmp_path) as job, pytest.raises(DeviceError, match="not inside"):
        job.place({name: stored(job, b"x")})


def test_a_disk_without_room_is_said_before_copying(tmp_path):
    with (
        JobFolder(tmp_path) as job,
        pytest.raises(DeviceError, match=r"MB free and .* to be copied") as raised,
    ):
        job.missing({"0" * 64: 1 << 60})
    assert raised.value.kind == "disk"


def test_what_dead_jobs_and_old_files_left_is_removed(tmp_path):
    with JobFolder(tmp_path) as job:
        old = tmp_path / "blobs" / stored(job, b"old")
    os.utime(old, (0, 0))
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    left = tmp_path / "jobs" / f"{dead.stdout.strip()}-x"
    left.mkdir()
    with JobFolder(tmp_path):
        assert not left.exists()
        assert not old.exists()


def test_warming_up_ends_when_the_time_stops_falling(monkeypatch):
    """A clock that runs only while the engine does: 80, 40, 20, 10, 10, ... ms a run."""
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    spans = iter([0.08, 0.04, 0.02])

    def run(feeds):
        clock[0] += next(spans, 0.01)
        return {}

    engine = Engine(run, "e 1", 1, 0.0)
    warmth = timing.warm_up(engine, {})
    assert warmth["first_ms"] == pytest.approx(80)
    assert warmth["is_warm"]
    assert warmth["run_seconds"] == pytest.approx(0.01)
    slot = timing.slot(engine, {}, 0.055, 0.01)
    assert slot["latencies_ms"] == pytest.approx([10] * 6)


def test_a_slow_engine_runs_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def run(feeds):
        clock[0] += 2.0
        return {}

    engine = Engine(run, "e 1", 1, 0.0)
    assert timing.warm_up(engine, {})["runs"] == 1
    assert timing.slot(engine, {}, 0.05, 2.0) == {"latencies_ms": [2000.0], "seconds": 2.0}


def test_an_engine_that_fails_names_the_shapes():
    def run(feeds):
        raise RuntimeError("no kernel\nmore")

    with pytest.raises(DeviceError, match=r"e 1 cannot run on \{'x': \(2, 3\)\}: no kernel"):
        Engine(run, "e 1", 1, 0.0)({"x": np.zeros((2, 3))})


def test_the_machine_is_described_from_its_files(tmp_path):
    files = {
        "sys/class/dmi/id/product_name": "Laptop 13",
        "proc/cpuinfo": "processor : 0\nmodel name : Quick CPU 9\n",
        "proc/meminfo": "MemTotal: 8388608 kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "800000",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3200000",
        "sys/class/thermal/thermal_zone0/temp": "45500",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    facts = machine.describe_machine(tmp_path)
    assert (facts["board"], facts["cpu"], facts["memory_gib"]) == ("Laptop 13", "Quick CPU 9", 8.0)
    assert (facts["cpu_clock_mhz"], facts["temperature_c"]) == ([800.0, 3200.0], 45.5)


def test_a_side_that_is_silent_for_too_long_is_gone(tmp_path, monkeypatch):
    """A network that was cut: the pipe stays open and nothing comes."""
    monkeypatch.setattr(server, "_SILENT_SECONDS", 0.05)
    read, write = os.pipe()
    with os.fdopen(read, "rb") as requests, os.fdopen(write, "wb"), JobFolder(tmp_path) as job:
        answers = io.BytesIO()
        server.Server(requests, answers, job).serve()
    assert answers.getvalue() == b""
    assert not job.path.exists()
