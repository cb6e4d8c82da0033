"""glibc's memory allocator: keeping what a training loop frees, giving back what an export frees.

By default glibc gives large blocks back to the system when they are freed and asks for them again
at the next step; on a CPU up to half of a training loop is then page faults. Other systems and
other C libraries are left as they are.
"""

import ctypes
import platform

# Parameters of mallopt(3), as in glibc's malloc.h, and the values that stop the giving back.
_TRIM_THRESHOLD = (-1, -1)  # never: the value is taken as the largest size
_TOP_PAD = (-2, 1 << 28)  # bytes asked for beyond what is needed
_MMAP_MAX = (-4, 0)  # no block of its own, which would be given back when freed


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for the next allocation; return whether that was done.

    It holds until the process ends. False where the C library is not glibc.
    """
    if not is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*parameter) == 1 for parameter in (_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX))


def return_freed_memory() -> None:
    """Give freed blocks that lie between used ones back to the system, where this is glibc.

    A layer's weights are often below the size from which glibc gives each block back by itself;
    after quantising eight layers of SAM's ViT-H such blocks came to 0.7 GB.
    """
    if is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def is_glibc() -> bool:
    """Return whether this Python runs on glibc, on Linux."""
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"


def describe_allocator() -> str:
    """Return what `doctor` says of the allocator during a training."""
    if is_glibc():
        version = platform.libc_ver()[1]
        return f"glibc {version}; a training sets mallopt, so that it keeps freed memory"
    return "the system's own; a training leaves it as it is"
