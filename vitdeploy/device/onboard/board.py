"""What the engine was built and timed on: board, JetPack, power mode, clocks, driver.

What cannot be found out is null beside a reason. Nothing is changed: modes and clocks are read.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_command(command: str) -> str | None:
    """Return what a command prints, None where it is not there or fails."""
    words = command.split()
    if shutil.which(words[0]) is None:
        return None
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def describe_board(root: Path, run: Callable[[str], str | None]) -> dict[str, Any]:
    """Return the facts of the machine whose file system is at `root`.

    Args:
        root: `/`, but for tests.
        run: `run_command`, but for tests.
    """
    board = _text(root / "proc/device-tree/model")
    release = _text(root / "etc/nv_tegra_release")
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "is_jetson": is_jetson(root),
    }
    found = {
        "board": (board, "not in the device tree"),
        "l4t": (_l4t(release), "no /etc/nv_tegra_release"),
        "jetpack": (
            run("dpkg-query -W -f=${Version} nvidia-jetpack"),
            "the package nvidia-jetpack is not installed",
        ),
        "power_mode": (_power_mode(run("nvpmodel -q")), "no nvpmodel, or it may not be asked"),
        "gpu_clock_mhz": (_gpu_clock_mhz(root, run), "neither devfreq nor nvidia-smi says"),
        "driver": (_driver(root, run), "neither /proc/driver/nvidia nor nvidia-smi says"),
    }
    for name, (value, reason) in found.items():
        facts[name] = value
        if value is None:
            facts[f"{name}_reason"] = reason
    return facts


def is_jetson(root: Path) -> bool:
    """Return whether this machine runs Jetson Linux."""
    return (root / "etc/nv_tegra_release").is_file()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _l4t(release: str | None) -> str | None:
    """Return `36.4.0` of `# R36 (release), REVISION: 4.0, GCID: ...`."""
    match = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release or "")
    return f"{match.group(1)}.{match.group(2)}" if match else None


def _power_mode(output: str | None) -> str | None:
    """Return the mode's name; numbers mean other modes on other boards."""
    match = re.search(r"Power Mode:\s*(\S+)", output or "")
    return match.group(1) if match else None


def _gpu_clock_mhz(root: Path, run: Callable[[str], str | None]) -> float | None:
    for path in sorted((root / "sys/class/devfreq").glob("*gpu*/cur_freq")):
        text = _text(path)
        if text and text.isdigit():
            return int(text) / 1e6
    output = run("nvidia-smi --query-gpu=clocks.sm --format=csv,noheader,nounits --id=0")
    return float(output) if output and output.replace(".", "").isdigit() else None


def _driver(root: Path, run: Callable[[str], str | None]) -> str | None:
    text = _text(root / "proc/driver/nvidia/version") or ""
    match = re.search(r"Kernel Module\s.*?(\d+(?:\.\d+)+)", text)
    if match:
        return match.group(1)
    return run("nvidia-smi --query-gpu=driver_version --format=csv,noheader --id=0")
