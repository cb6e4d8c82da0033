"""Profiles taken through a real OpenSSH server; the device is left as it was, whatever happens."""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.device import test_building
from tests.device.packages import STANDIN
from tests.remote.bundles import IMAGES, make_bundle
from tests.remote.loopback import loopback
from vitdeploy.cli import exit_code_from
from vitdeploy.data import Preprocess
from vitdeploy.errors import DataError, ExportError, UnsupportedError, UsageError
from vitdeploy.profiling import ProfileOptions
from vitdeploy.progress import SilentProgress
from vitdeploy.remote import RemoteOptions, address_from_url, profile_over_ssh, profiling

HERE = RemoteOptions(python=sys.executable)
TEGRASTATS = """#!/bin/sh
while :; do
    echo "RAM 2448/7620MB SWAP 0/3810MB CPU [3%@729] VDD_IN 5040mW/5000mW VDD_CPU 8mW/7mW"
    sleep 0.05
done
"""


def profile(device, *bundles, wishes=HERE, seconds=0.1, progress=None, **options):
    how = ProfileOptions(seconds=seconds, **options)
    return profile_over_ssh(bundles, address_from_url(device.url), how, wishes, progress)


class Interrupting(SilentProgress):
    """Calls something once timing has begun."""

    def __init__(self, action):
        self.action = action
        self.is_timing = False

    def stage(self, name):
        self.is_timing = name == "latency"

    def step(self, done, total):
        if self.is_timing:
            self.is_timing = False
            self.action()


def await_clean(device):
    """What runs on the device needs a moment to notice that the connection is gone."""
    deadline = time.monotonic() + 10
    while device.jobs():
        assert time.monotonic() < deadline, device.jobs()
        time.sleep(0.05)


def test_it_copies_checks_and_times(device, bundle):
    report = profile(device, bundle)
    assert report.passed
    (gate,) = report.gates
    assert gate.name == "golden_sqnr_db:small:onnx:model"
    (row,) = report.profile.timings
    assert (row.name, row.engine.split()[0], row.device) == (
        "small:onnx",
        "onnxruntime",
        device.url,
    )
    assert row.samples >= 3
    assert row.p50_ms > 0
    assert row.energy_mj is None
    assert "tegrastats" in row.energy_mj_reason
    (load,) = report.profile.loads
    assert load.load_ms > 0
    assert load.size_bytes == (bundle / "onnx" / "model.onnx").stat().st_size
    assert {r.n for r in report.fidelity} == {IMAGES}
    assert report.environment["python"] == sys.version.split()[0]
    assert "numpy" in report.environment
    assert device.jobs() == []


def test_the_second_time_nothing_is_copied(device, tmp_path):
    bundle = make_bundle(tmp_path / "again", classes=300)
    first = profile(device, bundle, batches=(3, 1), threads=1)
    assert "76.9 kB copied" in first.notes[-1]  # 300 classes of 256 bytes
    assert [row.batch for row in first.latency] == [3, 1]
    assert {row.threads for row in first.latency} == {1}
    assert profile(device, bundle).notes[-1].startswith("0 B copied")


def test_an_artefact_that_computes_something_else_fails_its_gate(device, bundle, tmp_path):
    report = profile(device, bundle, make_bundle(tmp_path / "wrong", error=0.01))
    verdicts = {gate.name: gate.passed for gate in report.gates}
    assert verdicts == {
        "golden_sqnr_db:small:onnx:model": True,
        "golden_sqnr_db:wrong:onnx:model": False,
    }
    ratio = report.profile.speedup["wrong:onnx"]
    assert ratio.value > 0


def test_energy_is_read_idle_and_under_load(device, bundle, monkeypatch):
    monkeypatch.setattr(profiling, "_ENERGY_SECONDS", 0.4)
    device.add_tool("tegrastats", TEGRASTATS)
    result = profile(device, bundle).profile
    assert result.machine.idle_watts == pytest.approx(
        5.04, rel=0.05
    )  # a pause takes longer than asked
    (row,) = result.timings
    # 5.04 W for as long as an image takes; a turn's first run is not timed, and Python's own time
    # between two runs of some microseconds counts.
    assert row.energy_mj > 5.04 * row.p50_ms * 0.5


def add_jetson_tools(device, log: Path):
    conf = device.folder / "nvpmodel.conf"
    conf.write_text("< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n")
    device.add_tool(
        "nvpmodel",
        '#!/bin/sh\n[ "$1" = -q ] && printf "NV Power Mode: MAXN\\n0\\n" && exit\n'
        f'echo "mode $2" >>{log}\n',
    )
    device.add_tool("jetson_clocks", f'#!/bin/sh\necho "clocks $1" >>{log}\n')
    # The server reads nvpmodel's configuration at this place in tests alone.
    device.add_tool(
        "jetson-python", f'#!/bin/sh\nNVPMODEL_CONF={conf} exec {sys.executable} "$@"\n'
    )


def test_power_mode_and_clocks_are_set_when_asked_and_put_back(device, bundle, tmp_path):
    log = tmp_path / "log"
    add_jetson_tools(device, log)
    profile(device, bundle, wishes=RemoteOptions(python="jetson-python"))
    assert not log.exists()  # nobody asked
    wishes = RemoteOptions(python="jetson-python", power_mode="15w", lock_clocks=True)
    profile(device, bundle, wishes=wishes)
    lines = log.read_text().split("\n")
    assert lines[:5] == ["mode 2", "clocks --store", "clocks ", "clocks --restore", "mode 0"]


def test_an_interrupt_cleans_up_and_puts_the_clocks_back(device, bundle, tmp_path):
    log = tmp_path / "log"
    add_jetson_tools(device, log)

    def interrupt():
        raise KeyboardInterrupt

    wishes = RemoteOptions(python="jetson-python", lock_clocks=True)
    with pytest.raises(KeyboardInterrupt):
        profile(device, bundle, wishes=wishes, seconds=60, progress=Interrupting(interrupt))
    await_clean(device)
    assert log.read_text().splitlines()[-1] == "clocks --restore"


def test_a_connection_that_breaks_is_one_error_and_the_device_is_clean(device, bundle):
    def cut():
        for child in psutil.Process(device.process.pid).children(recursive=True):
            if child.name().startswith("sshd"):
                child.kill()

    with pytest.raises(DataError, match=r"connection to ssh://.* broke") as raised:
        profile(device, bundle, seconds=60, progress=Interrupting(cut))
    assert "\n" not in str(raised.value)
    await_clean(device)


@pytest.mark.parametrize(
    ("option", "tool"), [("power_mode", "nvpmodel"), ("lock_clocks", "jetson_clocks")]
)
def test_a_tool_that_is_missing_is_one_error(device, bundle, option, tool):
    wishes = RemoteOptions(python=sys.executable, **{option: "MAXN" if "mode" in option else True})
    with pytest.raises(UnsupportedError, match=f"it has no {tool}"):
        profile(device, bundle, wishes=wishes)
    assert device.jobs() == []


def test_an_unknown_power_mode_names_those_there_are(device, bundle, tmp_path):
    add_jetson_tools(device, tmp_path / "log")
    wishes = RemoteOptions(python="jetson-python", power_mode="9000W")
    with pytest.raises(UnsupportedError, match="no power mode '9000W'; it has 15W, MAXN"):
        profile(device, bundle, wishes=wishes)


def test_an_engine_that_is_not_installed_is_one_error(device, bundle):
    # -S leaves out site-packages, and with them onnxruntime and numpy.
    device.add_tool("bare-python", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    with pytest.raises(UnsupportedError, match=r"no module 'numpy'.*pip install numpy onnxruntime"):
        profile(device, bundle, wishes=RemoteOptions(python="bare-python"))
    assert device.jobs() == []


def test_no_python_there_is_one_error(device, bundle):
    with pytest.raises(UnsupportedError, match="has no Python as 'no-such-python'"):
        profile(device, bundle, wishes=RemoteOptions(python="no-such-python"))


def test_a_program_that_is_no_python_is_one_error(device, bundle):
    device.add_tool("not-python", "#!/bin/sh\necho what >&2\nexit 3\n")
    with pytest.raises(UnsupportedError, match="does not run vitdeploy's server: what"):
        profile(device, bundle, wishes=RemoteOptions(python="not-python"))


def test_what_login_scripts_print_is_passed_over(device, bundle):
    device.add_tool("chatty", f'#!/bin/sh\necho welcome\nexec {sys.executable} "$@"\n')
    assert profile(device, bundle, wishes=RemoteOptions(python="chatty")).passed


def test_nobody_listening_is_one_error(device, bundle):
    nowhere = address_from_url("ssh://root@127.0.0.1:1")
    with pytest.raises(DataError, match=r"cannot connect to ssh://root@127.0.0.1:1: .*refused"):
        profile_over_ssh([bundle], nowhere)


def test_a_key_that_is_not_let_in_is_one_error(device, bundle):
    stranger = address_from_url(device.url.replace("ssh://", "ssh://nobody-", 1))
    with pytest.raises(DataError, match="Permission denied"):
        profile_over_ssh([bundle], stranger)


def test_a_full_disk_is_one_error_and_leaves_nothing(device, tmp_path, monkeypatch):
    """The limit on a file's size stands for the disk's: writing fails in the middle."""
    large = make_bundle(tmp_path / "large", classes=4000)  # 1 MB
    with (
        tempfile.TemporaryDirectory(prefix="vd-") as folder,
        loopback(Path(folder), file_limit_blocks=300) as small,
    ):
        monkeypatch.setenv("PATH", f"{small.folder}/client:{os.environ['PATH']}")
        with pytest.raises(DataError, match=r"cannot write to .*: File too large. Make room"):
            profile(small, large)
        assert small.jobs() == []
        assert list((small.cache / "blobs").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [({"streams": (2,)}, "--streams"), ({"is_isolated": True}, "--isolate")],
)
def test_what_a_device_is_not_asked_for_is_refused(bundle, options, named):
    with pytest.raises(UsageError, match=f"{named}: not with --device ssh"):
        profile_over_ssh([bundle], address_from_url("ssh://h"), ProfileOptions(**options))


def test_a_damaged_bundle_is_found_before_connecting(tmp_path):
    bundle = make_bundle(tmp_path / "damaged")
    (bundle / "onnx" / "model.onnx").write_bytes(b"other")
    with pytest.raises(DataError, match=r"model\.onnx"):
        profile_over_ssh([bundle], address_from_url("ssh://127.0.0.1:1"))


def test_a_file_is_no_bundle(bundle):
    with pytest.raises(UsageError, match="takes bundles"):
        profile_over_ssh([bundle / "onnx" / "model.onnx"], address_from_url("ssh://h"))


def add_tensorrt(device, faults=""):
    """The stand-ins of TensorRT and CUDA, in the Python that build.sh finds first."""
    device.add_tool(
        "python3",
        f"#!/bin/sh\nexport PYTHONPATH={STANDIN} STANDIN_TENSORRT=10.3.0 STANDIN_FAULTS={faults} "
        f"STANDIN_LOG={device.folder}/standin.log\n"
        f'case "$1" in *build.py) exec {sys.executable} {STANDIN}/run.py "$@";; '
        f'*) exec {sys.executable} "$@";; esac\n',
    )


def test_tensorrt_is_built_checked_and_timed_by_its_package(device, tmp_path, monkeypatch):
    add_tensorrt(device)
    head = test_building.HEAD.model_copy(update={"preprocess": Preprocess((32, 32)).to_dict()})
    monkeypatch.setattr(test_building, "HEAD", head)
    bundle = test_building.make_bundle(tmp_path / "trt-bundle")
    report = profile(device, bundle, wishes=RemoteOptions(f"{device.tools}/python3"), batches=(2,))
    assert report.device["passed"]
    assert report.device["device"]["tensorrt"] == "10.3.0"
    assert report.device["parts"][0]["chosen"] == "int8"
    assert not (bundle / "trt" / "device_report.json").exists()
    assert device.jobs() == []


def test_a_device_without_tensorrt_is_one_error(device, tmp_path):
    bundle = test_building.make_bundle(tmp_path / "trt-bundle")
    with pytest.raises((UnsupportedError, ExportError), match=r"build.sh ended with 6: .*tensorrt"):
        profile(device, bundle, wishes=HERE)
    assert device.jobs() == []


def test_a_killed_client_leaves_nothing(device, bundle):
    """As with SIGKILL, or a laptop's lid: only the end of the connection tells."""

    def kill():
        for child in psutil.Process().children():
            if child.name() == "ssh":
                child.kill()

    with pytest.raises(DataError, match="broke"):
        profile(device, bundle, seconds=60, progress=Interrupting(kill))
    await_clean(device)
    assert threading.active_count() < 20


def test_the_command_line_shows_it_and_fails_on_a_missed_gate(device, bundle, tmp_path, capsys):
    wrong = make_bundle(tmp_path / "wrong", error=0.01)
    words = ["profile", str(bundle), str(wrong), "--device", device.url, "--seconds", "0.1"]
    words += ["--remote-python", sys.executable, "--html", str(tmp_path / "page.html")]
    assert exit_code_from(words) == 10
    shown = capsys.readouterr().err
    assert "small:onnx" in shown
    assert "golden_sqnr_db:wrong:onnx:model" in shown
    assert "The device" in shown
    assert "Do not ship" in (tmp_path / "page.html").read_text()
    assert exit_code_from(["profile", str(bundle), "--device", "ssh://"]) == 2
    assert exit_code_from(["profile", str(bundle), "--lock-clocks"]) == 2
    assert "are for --device ssh://" in capsys.readouterr().err
