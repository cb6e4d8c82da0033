"""What this machine's processor offers; asked once, never assumed."""

import functools
import platform
import subprocess
from pathlib import Path

_FLAGS = {
    "vnni": ("avx512_vnni", "avx_vnni", "avx512vnni"),
    "amx": ("amx_int8", "amx_bf16", "amx_tile"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "dot": ("asimddp", "i8mm"),
}


def cpu_has(feature: str) -> bool:
    """Return whether the CPU has `vnni`, `amx`, `bf16` or `dot` (Arm's INT8 dot product).

    Arm's dot products do not saturate, so they count as `vnni` too.
    """
    names = _FLAGS[feature] + (_FLAGS["dot"] if feature == "vnni" else ())
    return any(name in _flags() for name in names)


@functools.cache
def cpu_name() -> str:
    """Return the processor's marketing name, or the architecture where unknown."""
    for line in _cpuinfo().splitlines():
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def has_sibling_threads() -> bool:
    """Return whether cores run two threads each (SMT, Hyper-Threading) and both are switched on."""
    import psutil

    cores = psutil.cpu_count(logical=False)
    return cores is not None and (psutil.cpu_count() or cores) > cores


def has_core_kinds(devices: Path = Path("/sys/devices")) -> bool:
    """Return whether Linux knows fast and slow x86 cores apart (Intel's hybrid CPUs)."""
    return (devices / "cpu_core").is_dir() and (devices / "cpu_atom").is_dir()


@functools.cache
def _flags() -> frozenset[str]:
    words: set[str] = set()
    for line in _cpuinfo().splitlines():
        if line.lower().startswith(("flags", "features")):
            words.update(line.split(":", 1)[1].lower().split())
            break
    if platform.system() == "Darwin":
        listing = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, check=False)
        if "FEAT_DotProd: 1" in listing.stdout:
            words.add("asimddp")
        if "FEAT_BF16: 1" in listing.stdout:
            words.add("bf16")
    return frozenset(words)


@functools.cache
def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
