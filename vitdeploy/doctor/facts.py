"""What the checks of `doctor` read of this machine, looked up once."""

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil

from vitdeploy.allocator import is_glibc
from vitdeploy.cpu import cpu_has
from vitdeploy.environment import PACKAGES
from vitdeploy.openvino_core import openvino_core

BESIDE = ("torchvision", "tensorrt", "tensorrt-rtx", "accelerate")
"""Packages that matter here and are not in every report's environment."""
_CHECKED = ("vitdeploy", *PACKAGES, *BESIDE)
"""Packages whose requirements are compared with what is installed."""
_MALLOC_VARIABLES = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
_GIB = 2.0**30


@dataclass(frozen=True)
class Facts:
    """What the checks read."""

    packages: Mapping[str, str]
    """Version by package, of those installed."""
    requirements: Mapping[str, Sequence[str]]
    """By package what it requires, as its metadata says."""
    features: frozenset[str]
    """Of the CPU: vnni, amx, bf16."""
    system: str
    """`Linux`, `Darwin`, `Windows`."""
    machine: str
    """`x86_64`, `aarch64`."""
    cpus: int
    quota_cpus: float | None
    """CPUs that the container may use at once; None without a limit."""
    memory_gib: float
    free_gib: Mapping[str, float]
    """By what it is for: free disk space."""
    is_glibc: bool
    has_nvidia_gpu: bool
    has_intel_device: Mapping[str, bool]
    """By OpenVINO's name, `GPU` and `NPU`: whether the kernel has a driver's node for one."""
    ort_providers: tuple[str, ...]
    openvino_devices: Mapping[str, str]
    """Full name by device; empty where OpenVINO does not load."""
    governor: str | None
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that change how engines run."""


def look() -> Facts:
    """Return the facts of this machine."""
    folder = Path(tempfile.gettempdir())
    return Facts(
        packages=_installed(),
        requirements={name: metadata.requires(name) or () for name in _CHECKED if _version(name)},
        features=frozenset(name for name in ("vnni", "amx", "bf16") if cpu_has(name)),
        system=platform.system(),
        machine=platform.machine().lower(),
        cpus=os.cpu_count() or 1,
        quota_cpus=_quota_cpus(),
        memory_gib=psutil.virtual_memory().total / _GIB,
        free_gib={
            "temporary files": shutil.disk_usage(folder).free / _GIB,
            "here": shutil.disk_usage(Path.cwd()).free / _GIB,
        },
        is_glibc=is_glibc(),
        has_nvidia_gpu=Path("/dev/nvidia0").exists() or Path("/dev/nvhost-gpu").exists(),
        has_intel_device={"GPU": _has_intel_gpu(), "NPU": Path("/dev/accel/accel0").exists()},
        ort_providers=_ort_providers(),
        openvino_devices=_openvino_devices(),
        governor=_governor(),
        variables={
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", *_MALLOC_VARIABLES)
            if name in os.environ
        },
    )


def _installed() -> dict[str, str]:
    """Return version by normal name of every package there is."""
    return {normal_name(d.metadata["Name"]): d.version for d in metadata.distributions()}


def normal_name(name: str) -> str:
    """Return a package's name as pip compares it."""
    return name.lower().replace("_", "-").replace(".", "-")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _quota_cpus() -> float | None:
    """Return the CPUs a container's quota allows (cgroup v2, then v1)."""
    places = (
        (Path("/sys/fs/cgroup/cpu.max"),),
        (
            Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
            Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
        ),
    )
    for paths in places:
        try:
            words = " ".join(path.read_text(encoding="ascii") for path in paths).split()
        except OSError:
            continue
        if words[0] not in ("max", "-1"):
            return int(words[0]) / int(words[1])
    return None


def _governor() -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text(encoding="ascii").strip() if path.is_file() else None


def _ort_providers() -> tuple[str, ...]:
    try:
        import onnxruntime as ort

        return tuple(ort.get_available_providers())
    except ImportError:
        return ()


def _openvino_devices() -> dict[str, str]:
    try:
        core = openvino_core()
        names = core.available_devices
        return {name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in names}
    except (ImportError, RuntimeError):
        return {}


def _has_intel_gpu() -> bool:
    """Return whether a display driver's device is Intel's."""
    vendors = Path("/sys/class/drm").glob("renderD*/device/vendor")
    return any(path.read_text(encoding="ascii").strip() == "0x8086" for path in vendors)
