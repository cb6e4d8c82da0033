"""The commands of docs/profiling.md run."""

import re
import shlex
from pathlib import Path

import pytest

from vitdeploy.cli import exit_code_from
from vitdeploy.profiling import limits
from vitdeploy.report.profile import Ceilings

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = re.findall(
    r"^\$ vitdeploy (.*)$", (ROOT / "docs/profiling.md").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command: str, monkeypatch: pytest.MonkeyPatch):
    ceilings = Ceilings(tops={"fp32": 0.1}, bandwidth_gbs=10.0, threads=1, measured_with="given")
    monkeypatch.setattr(limits, "ceilings_of_machine", lambda threads, folder: ceilings)
    monkeypatch.chdir(ROOT)
    # Seconds are for figures, which nothing here reads.
    words = shlex.split(re.sub(r"--seconds \S+", "--seconds 0.1", command))
    assert exit_code_from(words) == 0


def test_the_page_s_options_are_those_of_the_command(capsys: pytest.CaptureFixture[str]):
    assert len(COMMANDS) >= 5
    for name in ("profile", "doctor"):
        assert exit_code_from([name, "--help"]) == 0
        help_text = capsys.readouterr().out
        asked = [command for command in COMMANDS if command.startswith(name)]
        assert asked
        for option in re.findall(r"--[a-z-]+", " ".join(asked)):
            assert option in help_text
