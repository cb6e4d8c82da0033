"""Tables, messages and progress: on stderr, whole, and without taking names for markup."""

from functools import partial

import pytest
from rich.console import Console

from vitdeploy import console
from vitdeploy.console import ConsoleProgress, print_error, print_json, print_line, print_table


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """A terminal of 40 columns in place of stderr."""

    def people() -> Console:
        return Console(stderr=True, highlight=False, width=40, force_terminal=True)

    monkeypatch.setattr(console, "people", people)


def test_json_goes_to_stdout_with_one_newline(capsys: pytest.CaptureFixture[str]):
    print_json("{}")
    print_json("[1]\n")
    captured = capsys.readouterr()
    assert captured.out == "{}\n[1]\n"
    assert captured.err == ""


def test_everything_else_goes_to_stderr(capsys: pytest.CaptureFixture[str]):
    print_error("no such thing")
    print_line("a line")
    print_table("Title", ["a", ">b"], [("x", "1")])
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line.rstrip() for line in captured.err.splitlines()]
    assert lines[:3] == ["error: no such thing", "a line", "Title"]
    assert "\x1b" not in captured.err


@pytest.mark.parametrize(
    "name", ["[red]", "[/]", "[bold]x[/bold]", r"C:\[a]", "[link=x]y", ":cat:"]
)
def test_markup_in_names_is_shown_as_it_is(name: str, capsys: pytest.CaptureFixture[str]):
    print_error(name)
    print_line(name)
    print_table(f"a long enough title: {name}", ["name of the model, long enough"], [(name,)])
    with ConsoleProgress() as progress:
        progress.stage(name)
        progress.note(name)
    shown = capsys.readouterr().err
    assert shown.count(name) == 6


def test_a_long_message_is_not_broken_in_a_pipe(capsys: pytest.CaptureFixture[str]):
    print_error("word " * 100)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_figure_is_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]):
    cells = [f"{number}.123456789" for number in range(11)]
    print_table("Wide", [f">column {number}" for number in range(11)], [cells])
    shown = capsys.readouterr().err
    for cell in cells:
        assert cell in shown
    assert "…" not in shown


def test_no_figure_is_cut_on_a_narrow_terminal(terminal: None, capsys: pytest.CaptureFixture[str]):
    print_table("Wide", ["a", ">b", ">c"], [("a" * 30, "x" * 30, "y" * 30)])
    shown = capsys.readouterr().err
    assert "…" not in shown
    # the heading has one more `a`
    assert (shown.count("a"), shown.count("x"), shown.count("y")) == (31, 30, 30)


def test_figures_stand_beside_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    wide = partial(Console, stderr=True, highlight=False, width=140, force_terminal=True)
    monkeypatch.setattr(console, "people", wide)
    with ConsoleProgress() as progress:
        progress.stage("train")
        progress.step(1, 10)
        progress.detail("loss 1.234, 80 images/s, 0:10 left")
    assert "loss 1.234, 80 images/s, 0:10 left" in capsys.readouterr().err
    with ConsoleProgress(quiet=True) as progress:
        progress.detail("loss 1.234")
    assert capsys.readouterr().err == ""


def test_progress_is_one_line_a_stage_where_no_terminal_is(capsys: pytest.CaptureFixture[str]):
    with ConsoleProgress() as progress:
        progress.stage("load")
        progress.step(1, 10)
        progress.note("mind this")
        progress.stage("export")
    assert capsys.readouterr().err.splitlines() == ["load ...", "note: mind this", "export ..."]


def test_quiet_progress_shows_nothing(capsys: pytest.CaptureFixture[str]):
    with ConsoleProgress(quiet=True) as progress:
        progress.stage("load")
        progress.step(1, 10)
        progress.note("mind this")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.usefixtures("terminal")
def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]):
    with ConsoleProgress() as progress:
        progress.stage("load")
        progress.step(5, 10)
        progress.note("mind this")
        progress.stage("export")
        assert progress._bar is not None
        assert [task.description for task in progress._bar.tasks] == ["export"]
    shown = capsys.readouterr()
    assert "mind this" in shown.err
    assert shown.out == ""


@pytest.mark.usefixtures("terminal")
def test_the_bar_goes_when_the_work_fails():
    def fail(progress: ConsoleProgress) -> None:
        with progress:
            progress.stage("load")
            raise RuntimeError

    progress = ConsoleProgress()
    with pytest.raises(RuntimeError):
        fail(progress)
    assert progress._bar is not None
    assert not progress._bar.live.is_started
