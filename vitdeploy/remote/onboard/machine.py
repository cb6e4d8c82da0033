"""The machine's power mode and clocks: read always, changed only when asked and then put back."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from vitdeploy.device.onboard.board import describe_board, run_command

from .cache import DeviceError

_PACKAGES = ("numpy", "onnxruntime", "openvino", "tensorrt")


def describe_machine(root: Path = Path("/")) -> dict[str, Any]:
    """Return board, processor, memory, clocks and versions; what is unknown is null or absent."""
    facts = describe_board(root, run_command)
    if facts["board"] is None:
        product = _text(root / "sys/class/dmi/id/product_name")
        if product:
            facts["board"] = product
            facts.pop("board_reason", None)
    facts["cpu"] = _cpu(root)
    facts["cores"] = os.cpu_count()
    facts["memory_gib"] = _memory_gib(root)
    facts["versions"] = {name: version for name in _PACKAGES if (version := _version(name))}
    return {**facts, **clocks_now(root)}


def clocks_now(root: Path = Path("/")) -> dict[str, Any]:
    """Return load, the slowest and fastest core's clock in MHz, the highest temperature in C."""
    cores = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    clocks = [int(text) / 1000.0 for path in cores if (text := _text(path)) and text.isdigit()]
    zones = root.glob("sys/class/thermal/thermal_zone*/temp")
    warm = [int(text) / 1000.0 for path in zones if (text := _text(path)) and text.isdigit()]
    return {
        "load_1m": os.getloadavg()[0],
        "cpu_clock_mhz": [min(clocks), max(clocks)] if clocks else None,
        "temperature_c": max(warm) if warm else None,
    }


class Tuning:
    """Power mode and clocks as asked; a context manager that puts back what it changed."""

    def __init__(self) -> None:
        self._undo: list[list[str]] = []

    def __enter__(self) -> Tuning:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put back what was changed, the last change first."""
        while self._undo:
            words = self._undo.pop()
            subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    def set_power_mode(self, name: str) -> None:
        """Set nvpmodel's mode `name`, which is a name of its list or a number.

        Raises:
            DeviceError: there is no nvpmodel, it has no such mode, or it may not be set.
        """
        _require_tool("nvpmodel", "--power-mode")
        modes = _power_modes()
        number = modes.get(name.upper(), name if name.isdigit() else None)
        if number is None:
            known = ", ".join(sorted(modes)) or "none that it tells"
            raise DeviceError("missing", f"it has no power mode '{name}'; it has {known}.")
        before = re.findall(r"^\s*(\d+)\s*$", run_command("nvpmodel -q") or "", flags=re.M)
        if before and before[-1] == number:
            return
        _run(["nvpmodel", "-m", number], "--power-mode")
        if before:
            self._undo.append([*_as_root(), "nvpmodel", "-m", before[-1]])

    def lock_clocks(self, folder: Path) -> None:
        """Lock all clocks at their highest with jetson_clocks; `folder` keeps what they were.

        Raises:
            DeviceError: there is no jetson_clocks, or it may not be run.
        """
        _require_tool("jetson_clocks", "--lock-clocks")
        kept = str(folder / "clocks.conf")
        _run(["jetson_clocks", "--store", kept], "--lock-clocks")
        self._undo.append([*_as_root(), "jetson_clocks", "--restore", kept])
        _run(["jetson_clocks"], "--lock-clocks")


def _power_modes() -> dict[str, str]:
    """Return the numbers of nvpmodel's modes by name, as its configuration lists them."""
    text = _text(Path(os.environ.get("NVPMODEL_CONF", "/etc/nvpmodel.conf"))) or ""
    found = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text)
    return {name.upper(): number for number, name in found}


def _require_tool(tool: str, option: str) -> None:
    if shutil.which(tool) is None:
        raise DeviceError(
            "missing",
            f"it has no {tool}, which {option} needs; only a Jetson has. Leave {option} out.",
        )


def _as_root() -> list[str]:
    """Return what makes a command root's without asking for a password; nothing where we are."""
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def _run(words: list[str], option: str) -> None:
    result = subprocess.run(
        [*_as_root(), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise DeviceError(
            "missing",
            f"'{' '.join(words)}' failed: {said[-1] if said else result.returncode}. {option} "
            "needs root: connect as root, or allow it to sudo without a password.",
        )


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _cpu(root: Path) -> str | None:
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        if line.startswith(("model name", "Hardware")):
            return line.split(":", 1)[1].strip()
    return None


def _memory_gib(root: Path) -> float | None:
    found = re.search(r"MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo") or "")
    return round(int(found.group(1)) / 2**20, 1) if found else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None
