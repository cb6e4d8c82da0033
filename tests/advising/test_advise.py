"""The whole of it, on a tiny ONNX file and small pictures."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.advising.rows import tried_row
from tests.onnx_files import write_onnx
from vitdeploy.advising import Request, advise
from vitdeploy.advising import energy_use as energy_module
from vitdeploy.advising import search as search_module
from vitdeploy.advising.deadline import OutOfTimeError
from vitdeploy.advising.schema import Advice, Tried
from vitdeploy.bundle import load_bundle
from vitdeploy.cli import exit_code_from
from vitdeploy.errors import CompressionError, DataError, UnsupportedError, UsageError
from vitdeploy.recipe import Recipe, recipe_from_dict, recipe_from_yaml, yaml_from_recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that needs no torch to be loaded and exported; pictures lie beside it."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(12):
        pixels = rng.integers(0, 255, (4, 4, 3), np.uint8)
        picture = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)
        picture.save(folder / "pictures" / f"{number}.png")
    return str(write_onnx(folder / "tiny.onnx"))


def pictures(model: str) -> str:
    return str(Path(model).parent / "pictures")


def options(model: str) -> list[str]:
    places = ["--calib", pictures(model), "--eval", pictures(model)]
    return [*places, "--calib-samples", "8", "--measure-seconds", "0.05"]


def recipe(model: str, **changes: Any) -> Recipe:
    return recipe_from_dict(
        {
            "model": {"source": model},
            "calibration": {"path": pictures(model), "samples": 8},
            "evaluation": {"path": pictures(model)},
            "gates": {"max_drop_points": 5},
            "measure": {"seconds": 0.05, "search_seconds": 0},
            **changes,
        }
    )


def request(model: str, work: Path, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "recipe": recipe(model),
        "targets": ("onnx",),
        "precisions": ("fp32", "fp16", "int8"),
        "work": work,
    }
    return Request(**{**values, **changes})


@pytest.fixture(scope="module")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of results and of an advice for size; FP32, FP16, and bf16 that cannot be had."""
    work, output = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out") / "advice"
    asked = ["--max-drop", "5", "--objective", "size", "--work", str(work), "-o", str(output)]
    precisions = ["--precision", "fp32", "--precision", "fp16", "--precision", "bf16"]
    precisions += ["--target", "onnx"]
    assert exit_code_from(["advise", model, *asked, *precisions, *options(model), "-q"]) == 0
    return work, output


def read(output: Path) -> Advice:
    return Advice.model_validate_json((output / "advice.json").read_text(encoding="utf-8"))


def refuse(*_: object) -> Tried:
    raise AssertionError("nothing is to be tried")


def test_every_candidate_is_a_row_with_figures_or_its_reason(finished: tuple[Path, Path]):
    advice = read(finished[1])
    assert [row.status for row in advice.rows] == ["failed", "done", "done"]
    assert "bf16 MatMul" in str(advice.row("bf16 onnx").reason)
    fp16 = advice.row("fp16 onnx")
    assert fp16.size_bytes < fp16.reference_bytes
    assert fp16.latency_ms > 0
    assert fp16.drop_metric == "agreement"
    assert advice.recommended == "fp16 onnx"
    assert advice.front[0] == "fp16 onnx"
    assert advice.is_complete
    assert "fp16 onnx" in (finished[1] / "advice.html").read_text(encoding="utf-8")


def test_the_command_can_be_pasted(
    model: str, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    advice = read(finished[1])
    program, *arguments = shlex.split(str(advice.command))
    assert program == "vitdeploy"
    monkeypatch.chdir(tmp_path)
    assert exit_code_from(arguments) == 0
    (made,) = load_bundle(tmp_path / "tiny-fp16-onnx").artifacts()
    assert made.precision == "fp16"
    assert made.run_bytes == advice.row("fp16 onnx").size_bytes
    # a name that is taken now is not proposed again
    monkeypatch.setattr(search_module, "attempt", refuse)
    asked = replace(request(model, finished[0]), objective="size", precisions=("fp32", "fp16"))
    again, _ = advise(asked, tmp_path / "again")
    assert str(again.command).endswith("--output tiny-fp16-onnx-2")


def test_a_second_run_tries_nothing_again(
    model: str, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search_module, "attempt", refuse)
    # another limit changes nothing of a float candidate
    asked = request(
        model,
        finished[0],
        recipe=recipe(model, gates={"max_drop_points": 3}),
        precisions=("fp32", "fp16"),
        objective="size",
    )
    advice, was_stopped = advise(asked, tmp_path / "out")
    assert not was_stopped
    assert all(row.is_from_cache for row in advice.rows)
    before = read(finished[1])
    for row in advice.rows:
        assert row.latency_ms == before.row(row.name).latency_ms
    kept = recipe_from_yaml(tmp_path / "out" / "recommended.yaml")
    assert kept.gates.max_drop_points == 3
    assert kept.precision == "fp16"


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"evaluation": {"samples": 11}}, {"measure": {"seconds": 0.06}}]
)
def test_what_changed_is_tried_again(
    model: str,
    finished: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
):
    tried = []

    def attempt(candidate: Any, *_: object) -> Tried:
        tried.append(candidate.name)
        raise DataError("not now")

    monkeypatch.setattr(search_module, "attempt", attempt)
    asked = request(model, finished[0], recipe=recipe(model, **changes), precisions=("fp32",))
    advice, _ = advise(asked, tmp_path / "out")
    assert tried == ["fp32 onnx"]
    assert advice.row("fp32 onnx").reason == "not now"


def fake(results: dict[str, Any], calls: list[str]) -> Any:
    """An `attempt` that gives rows, or raises what it finds instead."""

    def attempt(candidate: Any, asked: Recipe, *_: object) -> Tried:
        calls.append(candidate.name)
        result = results[candidate.name]
        if isinstance(result, BaseException):
            raise result
        return Tried(row=tried_row(candidate.name, *result), recipe=yaml_from_recipe(asked))

    return attempt


def test_a_failure_is_a_row_and_kept_where_it_would_fail_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    results = {
        "fp32 onnx": (0.0, 1.0),
        "int8 onnx": CompressionError("no ranges"),
        "fp16 onnx": DataError("disk full"),
    }
    monkeypatch.setattr(search_module, "attempt", fake(results, calls))
    advice, _ = advise(request(model, tmp_path / "work"), tmp_path / "out")
    assert calls == ["fp32 onnx", "int8 onnx", "fp16 onnx"]
    assert advice.row("int8 onnx").status == "failed"
    assert advice.row("int8 onnx").reason == "no ranges"
    assert advice.recommended == "fp32 onnx"
    results["fp16 onnx"] = (0.1, 0.5)
    advice, _ = advise(request(model, tmp_path / "work"), tmp_path / "out")
    assert calls[3:] == ["fp16 onnx"]
    assert advice.row("int8 onnx").reason == "no ranges"
    assert advice.recommended == "fp16 onnx"


def test_ctrl_c_ends_with_what_is_known_and_the_next_run_goes_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls: list[str] = []
    results: dict[str, Any] = {"fp32 onnx": (0.0, 1.0), "int8 onnx": KeyboardInterrupt()}
    monkeypatch.setattr(search_module, "attempt", fake(results, calls))
    arguments = [
        *["advise", model, "--max-drop", "1", "--target", "onnx", "--work", str(tmp_path)],
        *["--precision", "fp32", "--precision", "w8a8", "--json", "-q"],
        *["-o", str(tmp_path / "out"), *options(model)],
    ]
    assert exit_code_from(arguments) == 130
    told = capsys.readouterr()
    assert "1 of 2 candidates known" in told.err
    assert json.loads(told.out) == json.loads((tmp_path / "out" / "advice.json").read_text())
    advice = read(tmp_path / "out")
    assert not advice.is_complete
    assert advice.recommended == "fp32 onnx"
    assert advice.row("int8 onnx").status == "waiting"
    results["int8 onnx"] = (0.5, 0.4)
    assert exit_code_from(arguments) == 0
    assert calls == ["fp32 onnx", "int8 onnx", "int8 onnx"]
    assert read(tmp_path / "out").recommended == "int8 onnx"


def test_time_that_is_up_leaves_the_rest_waiting(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    monkeypatch.setattr(search_module, "attempt", fake({"fp32 onnx": (0.0, 1.0)}, calls))
    advice, was_stopped = advise(request(model, tmp_path, budget_seconds=1e-9), tmp_path / "out")
    assert calls == ["fp32 onnx"]  # one result there is, however little time
    assert not was_stopped
    assert [row.status for row in advice.rows] == ["done", "waiting", "waiting"]
    assert not advice.is_complete


def test_what_takes_longer_than_a_run_does_not_keep_the_others_waiting(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    results = {"fp32 onnx": (0.0, 1.0), "int8 onnx": (0.1, 0.5), "fp16 onnx": (0.0, 0.9)}
    quick = fake(results, calls)

    def slow(candidate, *rest):
        tried = quick(candidate, *rest)
        if candidate.precision == "int8" and len(calls) <= 4:
            raise OutOfTimeError
        return tried

    monkeypatch.setattr(search_module, "attempt", slow)
    asked = request(model, tmp_path / "work")
    first, _ = advise(asked, tmp_path / "out")
    assert "after all others" in str(first.row("int8 onnx").reason)
    dropped = calls[-1]
    second, _ = advise(asked, tmp_path / "again")
    assert second.row("fp16 onnx").status == "done"
    assert second.row("int8 onnx").status == "waiting"
    assert dropped == calls[-1] == "int8 onnx"
    third, _ = advise(asked, tmp_path / "third")
    assert third.is_complete
    assert not list((tmp_path / "work").glob("*.dropped"))


def test_nothing_within_the_limit_is_a_failed_gate(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(search_module, "attempt", fake({"int8 onnx": (2.0, 0.4)}, []))
    asked = ["--max-drop", "1", "--precision", "int8", "--target", "onnx", "--work", str(tmp_path)]
    code = exit_code_from(["advise", model, *asked, "-o", str(tmp_path / "out"), *options(model)])
    assert code == 10
    assert "nothing loses 1 points or less" in capsys.readouterr().err
    advice = read(tmp_path / "out")
    assert advice.recommended is None
    assert advice.command is None
    assert not (tmp_path / "out" / "recommended.yaml").exists()


def test_other_peoples_folders_are_left_alone(model: str, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists"):
        advise(request(model, tmp_path / "work"), tmp_path)


def test_a_limit_is_needed(model: str, tmp_path: Path):
    with pytest.raises(UsageError, match="--max-drop"):
        request(model, tmp_path, recipe=recipe(model, gates={}))


def test_a_variant_must_be_a_folder_with_a_name_of_its_own(model: str, tmp_path: Path):
    with pytest.raises(UsageError, match="no folder"):
        request(model, tmp_path, pruned=(tmp_path / "nothing",))
    for parent in ("a", "b"):
        (tmp_path / parent / "half").mkdir(parents=True)
    with pytest.raises(UsageError, match="a name of its own"):
        request(model, tmp_path, pruned=(tmp_path / "a" / "half", tmp_path / "b" / "half"))


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--objective", "speed"], "allowed: latency, size, energy"),
        (["--budget", "10"], "90s, 10m, 1.5h"),
        (["--precision", "auto"], "which advise itself does"),
        (["--precision", "int3"], "unknown precision"),
    ],
)
def test_bad_options_are_refused(
    model: str, extra: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    assert exit_code_from(["advise", model, "--max-drop", "1", *extra]) == 2
    assert told in capsys.readouterr().err


def test_energy_is_refused_where_nothing_tells_it(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(energy_module, "find_energy_source", lambda: (None, "no meter"))
    with pytest.raises(UnsupportedError, match=r"no meter.*--objective latency"):
        advise(request(model, tmp_path, objective="energy"), tmp_path / "out")


class Meter:
    """A source of energy: a joule for every call of what runs."""

    name = "meter"

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def joules(self, run: Any) -> float:
        before = run.images
        run()
        return float(run.images - before)


def test_energy_is_told_by_image(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(energy_module, "find_energy_source", lambda: (Meter(), None))
    monkeypatch.setattr(energy_module, "_LOAD_SECONDS", 0.01)
    asked = request(model, tmp_path, objective="energy", precisions=("fp32",))
    advice, _ = advise(asked, tmp_path / "out")
    row = advice.row("fp32 onnx")
    assert row.energy_mj == pytest.approx(1000.0)
    assert row.reference_mj == pytest.approx(1000.0)
    assert advice.recommended == "fp32 onnx"


def test_a_target_that_cannot_be_timed_is_told_so(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search_module, "attempt", refuse)
    asked = request(model, tmp_path, targets=("trt",), precisions=("fp16",))
    advice, _ = advise(asked, tmp_path / "out")
    assert "latency cannot be measured here" in str(advice.row("fp16 trt").reason)
    assert advice.recommended is None
