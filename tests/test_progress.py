"""`SilentProgress` is quiet; both implementations have what the protocol asks for."""

import inspect

import pytest

from vitdeploy.console import ConsoleProgress
from vitdeploy.progress import Progress, SilentProgress


def test_silent_progress_shows_nothing(capfd: pytest.CaptureFixture[str]):
    progress = SilentProgress()
    progress.stage("load")
    progress.step(1, 2)
    progress.detail("half")
    progress.note("something")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("kind", [SilentProgress, ConsoleProgress])
def test_the_protocol_is_kept(kind: type):
    names = [name for name in vars(Progress) if not name.startswith("_")]
    assert names == ["stage", "step", "detail", "note"]
    for name in names:
        asked = list(inspect.signature(getattr(Progress, name)).parameters)
        assert list(inspect.signature(getattr(kind, name)).parameters) == asked
