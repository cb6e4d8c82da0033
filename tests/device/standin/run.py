"""Run a build.py with the stand-ins in place: `run.py build.py [options]`.

Time spent on timing is cut short: the stand-in's times are made up anyway.
"""

import ctypes
import os
import runpy
import sys
import time

import cudart

_RealCDLL = ctypes.CDLL


def load(name, *arguments, **options):
    if "libcudart" in str(name):
        if cudart.state.mode == "missing":
            raise OSError(name)
        return cudart.Library()
    if "libcuda" in str(name):
        raise OSError(name)
    return _RealCDLL(name, *arguments, **options)


_clock = iter(range(1, 1 << 30))
ctypes.CDLL = load
if "STANDIN_REAL_CLOCK" not in os.environ:
    time.monotonic = lambda: next(_clock) * 0.1
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if cudart.state.buffers:
        sys.stderr.write(f"LEAK: {len(cudart.state.buffers)} device buffers were not freed\n")
