"""README.md shows only what works: its commands and its Python run, in order, in one folder."""

import contextlib
import importlib
import io
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from tests.model_folders import write_images, write_vit_folder
from vitdeploy import errors
from vitdeploy.cli import exit_code_from
from vitdeploy.data import packaged_path
from vitdeploy.errors import EXIT_INTERRUPTED, ModelError
from vitdeploy.measure import measure_latency

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS_THE_HUB = "<!-- needs the hub -->"
# Latency has its own tests; ten seconds a command is for figures, which nothing here reads.
MEASURED_SECONDS = 0.3


@dataclass(frozen=True)
class Block:
    """A fenced block of the README."""

    language: str
    text: str
    needs_the_hub: bool

    def commands(self) -> list[list[str]]:
        lines = self.text.splitlines()
        return [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]


def blocks() -> list[Block]:
    pattern = rf"(?P<mark>{NEEDS_THE_HUB}\n)?```(?P<language>\w+)\n(?P<text>.*?)```\n"
    return [
        Block(found["language"], found["text"], found["mark"] is not None)
        for found in re.finditer(pattern, README, flags=re.DOTALL)
    ]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README takes for the reader's own, and no network."""
    from huggingface_hub import constants

    from vitdeploy.models import hub

    write_vit_folder(tmp_path / "my-model")
    write_images(tmp_path / "my-images")
    shutil.copy(next(packaged_path("digits/eval/7").glob("*.png")), tmp_path / "seven.png")
    shutil.copy(next(packaged_path("scenes/eval").glob("*.jpg")), tmp_path / "picture.jpg")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_is_reachable", lambda endpoint: False)
    shorten_measurements(monkeypatch)
    return tmp_path


def shorten_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give whoever imported `measure_latency` a small budget, whatever is asked for."""
    for name in ("pipeline", "profiling"):
        importlib.import_module(f"vitdeploy.{name}")
    users = [
        module
        for name, module in sys.modules.items()
        if name.startswith("vitdeploy.") and hasattr(module, "measure_latency")
    ]
    assert len(users) > 2
    for module in users:
        monkeypatch.setattr(
            module,
            "measure_latency",
            lambda subjects, seconds, *rest: measure_latency(
                subjects, min(seconds, MEASURED_SECONDS), *rest
            ),
        )


def test_every_fence_is_understood():
    assert README.count("```") == 2 * len(blocks())
    assert {block.language for block in blocks()} == {"console", "python"}
    assert README.count(NEEDS_THE_HUB) == sum(block.needs_the_hub for block in blocks()) == 2
    assert all(block.commands() for block in blocks() if block.language == "console")


def test_everything_shown_runs(place: Path, capsys: pytest.CaptureFixture[str]):
    for block in blocks():
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, "README.md", "exec"), {})  # our own text
            continue
        for program, *arguments in block.commands():
            if program != "vitdeploy":
                continue
            before = set(place.iterdir())
            code = exit_code_from(arguments)
            shown = capsys.readouterr().err
            expected = ModelError.exit_code if block.needs_the_hub else 0
            assert code == expected, f"vitdeploy {shlex.join(arguments)}\n{shown}"
            if block.needs_the_hub:
                assert set(place.iterdir()) == before
                assert "--random-weights" in shown
            elif "│" in block.text:
                assert labels(block.text) == labels(shown), "the README shows another table"
    made = {path.name for path in place.iterdir() if (path / "manifest.json").is_file()}
    assert {"demo", "digits-int8", "from-python"} <= made
    assert (place / "gates.xml").is_file()
    drawn = set(drawing())
    found = {path.relative_to(place / "demo").as_posix() for path in (place / "demo").rglob("*")}
    assert drawn <= found
    assert {name.split("/")[0] for name in found} == {name.split("/")[0] for name in drawn}


def drawing() -> list[str]:
    """The paths in the drawing of a bundle."""
    (lines,) = re.findall(r"^    demo/\n((?:      .*\n)+)", README, flags=re.MULTILINE)
    return [line.split()[0].strip("/,") for line in lines.splitlines()]


def labels(text: str) -> list[str]:
    """The first cells of a table's rows."""
    return [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]


def test_it_leads_with_the_two_commands_and_what_the_demo_prints():
    first, second = blocks()[:2]
    assert first.commands() == [["make", "demo"], ["make", "test"]]
    (shown,) = second.commands()
    assert "top-1, %" in labels(second.text)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(BIN)/{shlex.join(shown)}\n" in makefile


def test_other_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = metadata.metadata("vitdeploy").get_all("Provides-Extra") or []
    for block in blocks():
        if block.language != "console":
            continue
        for program, *arguments in block.commands():
            if program == "make":
                assert re.search(rf"^{arguments[0]}:", makefile, flags=re.MULTILINE)
            elif program == "pip":
                assert arguments[0] == "install"
                extras = re.findall(r"\[(\w+)\]", arguments[1])
                assert set(extras) <= set(known)
            else:
                assert program == "vitdeploy"


def test_the_table_of_exit_codes_is_that_of_the_errors():
    table = {
        int(code): meaning
        for code, meaning in re.findall(r"^\| (\d+) \| (.*?) \|$", README, flags=re.MULTILINE)
    }
    classes = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.VitdeployError)
    ]
    codes = {kind.exit_code for kind in classes} | {0, EXIT_INTERRUPTED}
    assert set(table) == codes
    assert "gate" in table[10]
    assert "checkpoint" in table[3]


def test_what_contributing_points_at_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+/[\w./-]*)`", text))
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)`", text):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for words in ("family", "step", "target", "metric"):
        assert f"**A {words}.**" in text
