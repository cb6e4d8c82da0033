"""OpenVINO's core, one a process, which lives as long as the process.

Each core gives its thread a signal stack of its own and, when it goes, puts back the one it found.
Two that do not go in the reverse order of their coming leave a stack that is no longer mapped, and
the next signal with a handler, Ctrl-C for one, is a segmentation fault (seen with 2026.4).
This module also runs on devices (see `remote.session`): Python 3.8.
"""

import functools
from typing import Any


@functools.lru_cache(maxsize=None)  # noqa: UP033 - 3.8
def openvino_core() -> Any:
    """Return the process's `openvino.Core`.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino as ov

    return ov.Core()
