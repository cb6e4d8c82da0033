"""Programs that tests use for real: skipped where they are missing, but not where they must be."""

import os

import pytest

_REQUIRED = os.environ.get("VITDEPLOY_REAL_PARTS") == "required"
"""`.ci/run` sets it: there a test without its program has failed."""


def require(missing: str | None) -> None:
    """Skip the test, or fail it, for the reason `missing`; go on where there is none."""
    if missing and _REQUIRED:
        pytest.fail(f"{missing}, and VITDEPLOY_REAL_PARTS=required")
    if missing:
        pytest.skip(missing)
