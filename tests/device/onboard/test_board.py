"""The facts of a board, from files and commands as a Jetson has them."""

from pathlib import Path

import pytest

from vitdeploy.device.onboard.board import describe_board, run_command

FACTS = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  "
    "540.4.0  Release Build\n",
}


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    for name, text in FACTS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def answers(command: str) -> str | None:
    return {
        "nvpmodel -q": "NV Power Mode: MAXN_SUPER\n2",
        "dpkg-query -W -f=${Version} nvidia-jetpack": "6.2+b77",
    }.get(command)


def test_a_jetson_is_described(jetson: Path):
    facts = describe_board(jetson, answers)
    assert facts["is_jetson"] is True
    assert facts["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert facts["l4t"] == "36.4.0"
    assert facts["jetpack"] == "6.2+b77"
    assert facts["power_mode"] == "MAXN_SUPER"  # the name: numbers differ from board to board
    assert facts["gpu_clock_mhz"] == pytest.approx(624.75)
    assert facts["driver"] == "540.4.0"
    assert not [name for name in facts if name.endswith("_reason")]


def test_what_is_unknown_is_null_beside_a_reason(tmp_path: Path):
    facts = describe_board(tmp_path, lambda command: None)
    assert facts["is_jetson"] is False
    for name in ("board", "l4t", "jetpack", "power_mode", "gpu_clock_mhz", "driver"):
        assert facts[name] is None
        assert facts[f"{name}_reason"]


def test_a_desktop_asks_nvidia_smi(tmp_path: Path):
    def smi(command: str) -> str | None:
        if "clocks.sm" in command:
            return "1980"
        return "570.86.15" if "driver_version" in command else None

    facts = describe_board(tmp_path, smi)
    assert facts["gpu_clock_mhz"] == 1980.0
    assert facts["driver"] == "570.86.15"


def test_commands_that_are_missing_or_fail_say_nothing():
    assert run_command("no-such-program-here -q") is None
    assert run_command("false") is None
    assert run_command("echo 1") == "1"
