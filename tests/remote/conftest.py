"""One device for all tests of this folder: this machine, through its own OpenSSH server."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.real_parts import require
from tests.remote.bundles import make_bundle
from tests.remote.loopback import MISSING, loopback


@pytest.fixture(scope="session")
def server():
    require(MISSING)
    # Short, for a path of a socket or a key must be.
    with tempfile.TemporaryDirectory(prefix="vd-") as folder, loopback(Path(folder)) as running:
        yield running


@pytest.fixture
def device(server, monkeypatch):
    """The server, its client first in PATH, without the tools that an earlier test put there."""
    monkeypatch.setenv("PATH", f"{server.folder}/client:{os.environ['PATH']}")
    yield server
    for tool in server.tools.iterdir():
        tool.unlink()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("remote") / "small")
