"""Resident memory of this process: now, and its highest since it was last asked to forget."""

import platform
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
"""What proc(5) takes to set the peak to the present size."""


def resident_bytes() -> int:
    """Return the resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def forget_peak() -> str | None:
    """Make `peak_bytes` begin anew; return None, or why this system cannot."""
    if platform.system() != "Linux":
        return f"{platform.system()} keeps one peak for the life of a process; use --isolate"
    try:
        _CLEAR.write_text(_FORGET_PEAK, encoding="ascii")
    except OSError as error:
        return f"the kernel does not let the peak be reset ({error.strerror}); use --isolate"
    return None


def peak_bytes() -> int:
    """Return the highest resident memory since `forget_peak`, or of the process's whole life."""
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform.system() == "Darwin" else 1024 * peak)
