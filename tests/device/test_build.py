"""build.py end to end, as on the device, against the stand-ins for tensorrt and libcudart.

What only a GPU shows (speed, the engine's own numbers) is not here: see docs/tensorrt.md.
"""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device.packages import (
    builds,
    device_report,
    make_package,
    package_part,
    run_build,
)
from vitdeploy.device import PackageOptions, write_package

STRONG, WEAK = "model.int8.strong.onnx", "model.int8.weak.onnx"
VERSIONS = ["8.6.1", "10.3.0", "11.4.0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("made") / "trt")


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "trt"))


def leftovers(folder: Path) -> list[str]:
    """What a failed build must not leave: engines, stamps, scratch and partial files."""
    names = [path.name for path in folder.iterdir()]
    return [n for n in names if n.startswith(".") or "engine" in n or n.endswith(".partial")]


@pytest.mark.parametrize(
    ("version", "file", "network_flags", "builder_flags"),
    [
        ("8.6.1", WEAK, ["EXPLICIT_BATCH"], ["FP16", "INT8"]),
        ("10.3.0", STRONG, ["STRONGLY_TYPED"], []),
        ("11.4.0", STRONG, ["STRONGLY_TYPED"], []),
    ],
)
def test_each_version_gets_its_file_and_flags(
    package: Path, version: str, file: str, network_flags: list[str], builder_flags: list[str]
):
    result = run_build(package, "--engine", "int8", "--no-timing", version=version)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    (built,) = builds(package)
    assert (built["file"], built["network_flags"], built["builder_flags"]) == (
        file,
        network_flags,
        builder_flags,
    )
    assert built["verbosity"] == "DETAILED"
    assert built["shapes"] == {"x": [[1, 12], [2, 12], [8, 12]]}


def test_auto_keeps_the_fastest_faithful_engine(package: Path):
    assert run_build(package).returncode == 0
    report = device_report(package)
    (part,) = report["parts"]
    assert [item["precision"] for item in part["candidates"]] == ["fp16", "int8"]
    assert part["chosen"] == "int8"
    assert report["passed"] is True
    stamp = json.loads((package / "model.engine.json").read_text())
    assert stamp["onnx"] == STRONG
    assert stamp["tensorrt"] == "10.3.0"
    assert stamp["compute_capability"] == "8.7"
    assert stamp["is_compared"] is True
    assert STRONG in (package / "model.engine").read_text()


def test_auto_keeps_fp16_where_int8_is_slower(tmp_path: Path):
    folder = make_package(tmp_path / "trt", milliseconds={"fp16": 1.0, "int8": 3.0})
    assert run_build(folder).returncode == 0
    assert device_report(folder)["parts"][0]["chosen"] == "fp16"


def test_auto_keeps_fp16_where_int8_is_wrong(package: Path):
    result = run_build(package, faults=[f"wrong:{STRONG}", f"nan:{WEAK}"])
    assert result.returncode == 0
    part = device_report(package)["parts"][0]
    assert part["chosen"] == "fp16"
    verdicts = [(item["file"], item["status"]) for item in part["candidates"]]
    assert verdicts[1:] == [(STRONG, "mismatch"), (WEAK, "mismatch")]


def test_the_report_has_what_was_measured(package: Path):
    run_build(package, "--engine", "int8")
    (item,) = device_report(package)["parts"][0]["candidates"]
    plain, graph = item["latency"]
    assert (plain["cuda_graph"], graph["cuda_graph"]) == (False, True)
    assert plain["p50_ms"] == pytest.approx(1.0)  # the stand-in's own figure
    assert plain["samples"] >= 100
    assert plain["p99_ms"] is not None
    assert [row["name"] for row in item["layers"]] == ["fc1_gemm", "_gemm_mha_v2_myl0"]
    assert item["layers"][0]["mean_ms"] == pytest.approx(0.25)
    assert (item["products"], item["int8_products"], item["fused_attention"]) == (1, 1, 1)
    (output,) = item["golden"]["outputs"]
    assert item["golden"]["images"] == 4
    # 1 % noise on the weights is about 40 dB; the stand-in computes in double precision.
    assert 34 < output["sqnr_db"] < 44
    assert output["sqnr_db"] == pytest.approx(output["min_sqnr_db"] + 3, abs=0.01)


@pytest.mark.parametrize("fault", ["wrong", "nan", "silent"])
def test_a_mismatch_is_ten_and_keeps_no_engine(package: Path, fault: str):
    faults = [f"{fault}:{STRONG}", f"{fault}:{WEAK}"]
    result = run_build(package, "--engine", "int8", faults=faults)
    assert result.returncode == 10
    assert "does not do what the model does" in result.stderr
    assert ("NaN" in result.stderr) == (fault != "wrong")  # silent: it wrote nothing at all
    assert not leftovers(package)
    report = device_report(package)
    assert report["passed"] is False
    assert report["parts"][0]["engine"] is None


def test_ten_falls_back_to_the_weak_graph(package: Path):
    result = run_build(package, "--engine", "int8", faults=[f"no_build:{STRONG}"])
    assert result.returncode == 0, result.stderr
    assert [item["file"] for item in builds(package)] == [STRONG, WEAK]
    assert builds(package)[1]["builder_flags"] == ["FP16", "INT8"]
    assert builds(package)[1]["network_flags"] == []
    assert device_report(package)["parts"][0]["candidates"][0]["status"] == "failed"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no_build", "does not build"),
        ("no_parse", "UNSUPPORTED_NODE"),
        ("no_load", "does not load here"),
    ],
)
def test_what_tensorrt_refuses_is_five(package: Path, fault: str, words: str):
    # 11 has no fallback: weakly typed networks are gone.
    result = run_build(package, "--engine", "int8", version="11.4.0", faults=[f"{fault}:{STRONG}"])
    assert result.returncode == 5
    assert words in result.stderr
    assert not leftovers(package)


@pytest.mark.parametrize(
    ("version", "words"), [("8.5.2", "TensorRT 8.5.2 is too old"), ("8.0.1", "8.6 or newer")]
)
def test_an_old_tensorrt_is_six(package: Path, version: str, words: str):
    result = run_build(package, version=version)
    assert result.returncode == 6
    assert words in result.stderr
    assert "JetPack" in result.stderr
    assert not leftovers(package)


def test_a_version_that_reads_no_graph_is_six(tmp_path: Path):
    folder = make_package(tmp_path / "trt", [("int8", "strong")])
    result = run_build(folder, version="8.6.1")
    assert result.returncode == 6
    assert "TensorRT 10.0 or newer reads them" in result.stderr
    assert "--trt-version 8.6" in result.stderr
    folder = make_package(tmp_path / "weak", [("int8", "weak")])
    result = run_build(folder, version="11.4.0")
    assert result.returncode == 6
    assert "before TensorRT 11 only" in result.stderr


def test_no_tensorrt_is_six_and_says_what_to_install(package: Path):
    plain = subprocess.run(  # -S: without site-packages, where a real one may be
        [sys.executable, "-S", "build.py"], cwd=package, capture_output=True, text=True, check=False
    )
    assert plain.returncode == 6
    assert "nvidia-jetpack" in plain.stderr
    assert "pip install tensorrt" in plain.stderr


@pytest.mark.parametrize("mode", ["missing", "no_device"])
def test_no_gpu_is_six(package: Path, mode: str):
    result = run_build(package, STANDIN_CUDA=mode)
    assert result.returncode == 6
    assert "no NVIDIA GPU" in result.stderr


def test_a_missing_file_is_seven(package: Path):
    (package / STRONG).unlink()
    result = run_build(package)
    assert result.returncode == 7
    assert f"{STRONG} is missing" in result.stderr
    assert builds(package) == []


@pytest.mark.parametrize("name", [WEAK, "golden/model.0.input.x.bin", "build.sh"])
def test_a_changed_file_is_seven(package: Path, name: str):
    path = package / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    result = run_build(package)
    assert result.returncode == 7
    assert f"{name} has sha256" in result.stderr
    assert builds(package) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [("{", 7), ("[]", 7), ('{"format": "vitdeploy-trt-package", "schema_version": 2}', 6)],
)
def test_a_package_json_that_is_none(package: Path, text: str, code: int):
    (package / "package.json").write_text(text)
    assert run_build(package).returncode == code


@pytest.mark.parametrize("version", VERSIONS)
def test_the_timing_cache_is_kept_and_used(package: Path, version: str):
    arguments = ("--engine", "int8", "--no-timing")
    run_build(package, *arguments, version=version)
    assert builds(package)[0]["cache"] == ""
    run_build(package, *arguments, version=version)
    assert builds(package)[0]["cache"] == f"cache of {version}"
    assert (package / f"timing-{version}-sm87.cache").is_file()


@pytest.mark.parametrize("data", [b"broken", b"cache of another version"])
def test_a_timing_cache_of_something_else_is_left_aside(package: Path, data: bytes):
    (package / "timing-10.3.0-sm87.cache").write_bytes(data)
    assert run_build(package, "--engine", "int8", "--no-timing").returncode == 0
    assert builds(package)[0]["cache"] == ""


def test_a_failed_build_leaves_the_engine_that_was_there(package: Path):
    assert run_build(package, "--engine", "int8", "--no-timing").returncode == 0
    before = (package / "model.engine").read_bytes()
    assert run_build(package, "--engine", "fp16", faults=[
        "wrong:model.fp16.strong.onnx", "wrong:model.fp16.weak.onnx",
    ]).returncode == 10  # fmt: skip
    assert (package / "model.engine").read_bytes() == before
    assert json.loads((package / "model.engine.json").read_text())["precision"] == "int8"


def test_workspace_is_half_of_the_free_memory(package: Path):
    run_build(package, "--engine", "int8", "--no-timing", STANDIN_FREE_MIB="3000")
    assert builds(package)[0]["workspace"] == ["MemoryPoolType.WORKSPACE", 1500 << 20]


@pytest.mark.parametrize(("asked", "given"), [("500", 500), ("9000", 3000)])
def test_workspace_is_as_asked_but_never_more_than_is_free(package: Path, asked: str, given: int):
    arguments = ("--engine", "int8", "--no-timing", "--workspace-mib", asked)
    result = run_build(package, *arguments, STANDIN_FREE_MIB="3000")
    assert builds(package)[0]["workspace"][1] == given << 20
    assert ("3000 MiB are free" in result.stderr) == (given == 3000)


def test_shapes_set_the_optimum(package: Path):
    assert run_build(package, "--engine", "int8", "--shapes", "batch=7").returncode == 0
    assert builds(package)[0]["shapes"] == {"x": [[1, 12], [7, 12], [8, 12]]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "batch=9"], "takes 1 to 8"),
        (["--shapes", "tokens=4"], "dynamic dimensions are batch"),
        (["--shapes", "batch=x"], "NAME=N"),
        (["--workspace-mib", "0"], "from 1 up"),
        (["--engine", "int4"], "it has fp16, int8"),
        (["--batch", "4"], "unrecognized"),
    ],
)
def test_wrong_options_are_two(package: Path, arguments: list[str], words: str):
    result = run_build(package, *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert builds(package) == []


def test_no_timing_times_nothing(package: Path):
    assert run_build(package, "--no-timing").returncode == 0
    part = device_report(package)["parts"][0]
    assert [item["latency"] for item in part["candidates"]] == [[], []]
    assert part["chosen"] == "int8"
    assert "nothing was timed" in part["chosen_reason"]
    assert part["candidates"][0]["layers"][0]["mean_ms_reason"] == "not timed"


def test_an_engine_that_cannot_be_captured_is_timed_without_a_graph(package: Path):
    assert run_build(package, "--engine", "int8", STANDIN_CUDA="no_graphs").returncode == 0
    plain, graph = device_report(package)["parts"][0]["candidates"][0]["latency"]
    assert plain["p50_ms"] is not None
    assert graph["p50_ms"] is None
    assert "cudaStreamBeginCapture failed" in graph["p50_ms_reason"]


def test_fp32_is_built_where_there_is_nothing_else(tmp_path: Path):
    folder = make_package(tmp_path / "trt", [("fp32", "weak")])
    for version, network in (("8.6.1", ["EXPLICIT_BATCH"]), ("11.4.0", ["STRONGLY_TYPED"])):
        assert run_build(folder, "--no-timing", version=version).returncode == 0
        assert builds(folder)[0]["network_flags"] == network
        assert builds(folder)[0]["builder_flags"] == []


def test_two_parts_build_and_one_mismatch_fails_both(tmp_path: Path):
    folder = tmp_path / "trt"
    folder.mkdir()
    parts = tuple(
        package_part(folder, [("int8", "strong")], name=name) for name in ("encoder", "decoder")
    )
    write_package(folder, parts, PackageOptions("sam-test"))
    assert run_build(folder, "--no-timing").returncode == 0
    assert (folder / "encoder.engine").is_file()
    assert (folder / "decoder.engine").is_file()
    result = run_build(folder, "--no-timing", faults=["nan:decoder.int8.strong.onnx"])
    assert result.returncode == 10
    assert [part["passed"] for part in device_report(folder)["parts"]] == [True, False]


def test_scripts_can_be_run(package: Path):
    for name in ("build.py", "build.sh"):
        assert (package / name).stat().st_mode & stat.S_IXUSR


def test_the_engine_is_compared_on_every_case(tmp_path: Path):
    # Golden images in cases of one: batch 1 as it will be used.
    folder = make_package(tmp_path / "trt", [("int8", "strong")], batch=1)
    assert run_build(folder, "--no-timing").returncode == 0
    (item,) = device_report(folder)["parts"][0]["candidates"]
    assert item["golden"]["images"] == 4
