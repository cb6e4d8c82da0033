"""trtexec's flags by version, and build.py with a stand-in for the program."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device.packages import STANDIN, builds, device_report, make_package, run_build
from vitdeploy.device.onboard.contents import GraphSpec, InputSpec
from vitdeploy.device.onboard.engine import EngineRequest
from vitdeploy.device.onboard.failure import Failure
from vitdeploy.device.onboard.trtexec import (
    build_flags,
    find_trtexec,
    times_row,
    timing_flags,
    trtexec_version,
)
from vitdeploy.device.onboard.versions import plan_builds, version_from_text

PROGRAM = STANDIN / "trtexec"
GRAPHS = [
    GraphSpec("int8", "strong", "m.int8.strong.onnx", "", "10.0", {}),
    GraphSpec("int8", "weak", "m.int8.weak.onnx", "", "8.6", {}),
    GraphSpec("fp32", "weak", "m.fp32.weak.onnx", "", "8.6", {}),
]
INPUTS = (InputSpec("x", "float32", ("batch", 3), (1, 3), (4, 3), (8, 3)),)
VERSIONS = ["8.6.1", "10.3.0", "10.7.0", "10.12.0", "10.16", "11.0", "11.1"]


def all_flags(version: tuple[int, int, int]) -> list[str]:
    flags = timing_flags(Path("e"), INPUTS, Path("times.json"), version)
    for precision in ("int8", "fp32"):
        for plan in plan_builds(GRAPHS, precision, version):
            request = EngineRequest(Path(plan.graph.file), plan, INPUTS, 1 << 30, b"")
            flags += build_flags(request, Path("e"), Path("c"), version)
    return flags


@pytest.mark.parametrize("version", VERSIONS)
def test_every_flag_is_one_that_this_version_parses(version: str, shared: Path):
    known = (shared / f"data/tensorrt/trtexec_flags_{version}.txt").read_text().split()
    used = {flag.partition("=")[0] for flag in all_flags(version_from_text(version))}
    assert used <= set(known)


def test_typing_is_said_the_way_each_version_knows():
    def words(version: tuple[int, int, int]) -> set[str]:
        return {flag for flag in all_flags(version) if "=" not in flag}

    assert words((8, 6, 1)) >= {"--fp16", "--int8", "--useCudaGraph"}
    assert "--stronglyTyped" not in words((8, 6, 1))
    assert words((10, 3, 0)) >= {"--stronglyTyped", "--fp16", "--int8"}
    assert words((11, 0, 0)) == {"--skipInference"}


def test_dynamic_shapes_are_written_and_fixed_ones_are_not():
    flags = all_flags((10, 3, 0))
    assert "--minShapes=x:1x3" in flags
    assert "--optShapes=x:4x3" in flags
    assert "--maxShapes=x:8x3" in flags
    assert "--shapes=x:4x3" in flags
    fixed = (InputSpec("x", "float32", (1, 3), (1, 3), (1, 3), (1, 3)),)
    assert not [f for f in timing_flags(Path("e"), fixed, Path("t"), (10, 3, 0)) if "hapes" in f]


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.16.2", "11.1.0"])
def test_the_version_is_read_from_the_first_line(monkeypatch: pytest.MonkeyPatch, version: str):
    monkeypatch.setenv("STANDIN_TENSORRT", version)
    assert trtexec_version(PROGRAM) == version_from_text(version)


def test_what_is_no_trtexec_is_refused():
    with pytest.raises(Failure, match="does not say which TensorRT"):
        trtexec_version(Path(shutil.which("true") or "/bin/true"))
    with pytest.raises(Failure, match="no trtexec at '/nowhere/trtexec'") as caught:
        find_trtexec("/nowhere/trtexec")
    assert caught.value.exit_code == 6


def test_times_are_gpu_compute_times(tmp_path: Path):
    path = tmp_path / "times.json"
    path.write_text(json.dumps([{"computeMs": float(i), "latencyMs": 500.0} for i in range(100)]))
    row = times_row(path)
    assert (row["p50_ms"], row["p90_ms"], row["p99_ms"]) == (50.0, 90.0, 99.0)
    path.write_text("[]")
    with pytest.raises(Failure, match="timed nothing"):
        times_row(path)
    path.write_text('[{"latencyMs": 1}]')
    with pytest.raises(Failure, match="cannot read trtexec's times"):
        times_row(path)


def test_it_times_beside_python(tmp_path: Path):
    folder = make_package(tmp_path / "trt", [("int8", "strong")])
    result = run_build(folder, "--trtexec", str(PROGRAM))
    assert result.returncode == 0, result.stderr
    rows = device_report(folder)["parts"][0]["candidates"][0]["latency"]
    assert [row["method"] for row in rows] == ["cuda_events", "cuda_events", "trtexec"]
    assert rows[2]["p50_ms"] == pytest.approx(1.1)


def test_its_failure_does_not_undo_a_faithful_engine(tmp_path: Path):
    folder = make_package(tmp_path / "trt", [("int8", "strong")])
    result = run_build(folder, "--trtexec", str(PROGRAM), STANDIN_TRTEXEC="fail")
    assert result.returncode == 0
    row = device_report(folder)["parts"][0]["candidates"][0]["latency"][2]
    assert row["p50_ms"] is None
    assert "Could not find any implementation" in row["p50_ms_reason"]


def run_alone(folder: Path, *options: str, version: str, **environment: str):
    """build.py in a Python without tensorrt; -S keeps a real one out."""
    return subprocess.run(
        [sys.executable, "-S", str(folder / "build.py"), "--trtexec", str(PROGRAM), *options],
        env={
            **os.environ,
            "STANDIN_TENSORRT": version,
            "STANDIN_LOG": str(folder.parent / "standin.log"),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("version", "typing"), [("8.6.1", "weak"), ("10.3.0", "strong")])
def test_alone_it_builds_but_that_is_no_success(tmp_path: Path, version: str, typing: str):
    folder = make_package(tmp_path / "trt")
    result = run_alone(folder, version=version)
    assert result.returncode == 6
    assert "not compared with the golden outputs" in result.stderr
    report = device_report(folder)
    part = report["parts"][0]
    assert (report["passed"], part["chosen"]) == (False, "int8")
    assert {item["typing"] for item in part["candidates"]} == {typing}
    assert {item["status"] for item in part["candidates"]} == {"unchecked"}
    assert json.loads((folder / "model.engine.json").read_text())["is_compared"] is False
    assert report["device"]["compute_capability"] is None


def test_alone_it_is_accepted_where_that_is_asked_for(tmp_path: Path):
    folder = make_package(tmp_path / "trt", [("int8", "strong")])
    result = run_alone(folder, "--no-check", "--no-timing", version="10.3.0")
    assert result.returncode == 0, result.stderr
    assert [item["event"] for item in builds(folder)] == ["trtexec"]


def test_alone_its_failure_is_five(tmp_path: Path):
    folder = make_package(tmp_path / "trt", [("int8", "strong")])
    result = run_alone(folder, "--no-check", version="10.3.0", STANDIN_TRTEXEC="fail")
    assert result.returncode == 5
    assert "Could not find any implementation" in result.stderr
    assert not (folder / "model.engine").exists()


def test_build_sh_finds_python_or_trtexec(tmp_path: Path):
    folder = make_package(tmp_path / "trt", [("int8", "strong")])
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tools / "python3").chmod(0o755)
    (tools / "trtexec").symlink_to(PROGRAM)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "STANDIN_TENSORRT": "10.3.0",
        "STANDIN_LOG": str(tmp_path / "standin.log"),
    }

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(folder / "build.sh"), "--no-timing", "--no-check"],
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    alone = run()
    assert alone.returncode == 0, alone.stderr
    assert "trtexec builds alone" in alone.stderr
    # With a tensorrt that imports, Python is taken; here it finds no GPU and says so.
    found = run(PYTHONPATH=str(STANDIN))
    assert found.returncode == 6
    assert "no NVIDIA GPU" in found.stderr
