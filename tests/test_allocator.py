"""The allocator keeps what a training loop frees, where it is glibc's."""

import subprocess
import sys

import pytest

from vitdeploy.allocator import describe_allocator, is_glibc

LOOP = """
import resource, sys
from vitdeploy.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        bytearray(64 << 20)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", LOOP, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


HOLES = """
import mmap
from pathlib import Path
from vitdeploy.allocator import return_freed_memory
def resident():
    return mmap.PAGESIZE * int(Path("/proc/self/statm").read_text().split()[1])
blocks = [bytearray(b"1" * (64 << 10)) for _ in range(4000)]  # each below glibc's own limit
del blocks[::2]
before = resident()
return_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(not is_glibc(), reason="the C library is not glibc")
def test_what_lies_free_between_used_blocks_is_given_back():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0.5 * 2000 * (64 << 10)


@pytest.mark.skipif(not is_glibc(), reason="the C library is not glibc")
def test_freed_memory_is_not_faulted_in_again():
    # 20 blocks of 16384 pages of 4 KiB: each touched again, or (huge pages) each 32 times.
    assert faults("leave") >= 20 * 32
    assert faults("keep") < 20


def test_doctor_says_so():
    assert ("mallopt" in describe_allocator()) == is_glibc()
