"""The release pipeline of docs/ci.md: its commands run, its workflow is them, it ends with 10."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.report.samples import sample
from vitdeploy.cli import exit_code_from
from vitdeploy.report import WRITERS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / "examples/ci/vitdeploy.yml").read_text(encoding="utf-8"))
# What the commands are about is not how the recipe compresses: FP32 on one target is quick.
RECIPE = """
schema_version: 1
model: {source: vit-digits}
precision: fp32
targets: [onnx]
measure: {seconds: 0.2}
evaluation: {samples: 20}
gates: {max_drop_points: 0.5}
"""


def documented() -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^\$ (.+)$", DOCUMENT, flags=re.MULTILINE)]


def workflow_commands() -> list[list[str]]:
    (job,) = WORKFLOW["jobs"].values()
    texts = [step["run"] for step in job["steps"] if "run" in step]
    words = [shlex.split(text.replace("$GITHUB_STEP_SUMMARY", "summary.md")) for text in texts]
    return [line for line in words if line[0] == "vitdeploy"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder in which everything that docs/ci.md shows was run."""
    place = tmp_path_factory.mktemp("pipeline")
    (place / "recipes").mkdir()
    (place / "recipes" / "vit-digits-int8.yaml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(place)
    try:
        for program, *arguments in documented():
            if program == "cp":
                shutil.copy(*arguments)
            else:
                assert program == "vitdeploy"
                assert exit_code_from(arguments) == 0, arguments
    finally:
        os.chdir(before)
    return place


def test_every_command_of_the_document_runs(pipeline):
    assert [words[0] for words in documented()] == ["vitdeploy", "cp", "vitdeploy"]
    assert (pipeline / "bundle" / "report.html").is_file()
    suites = ElementTree.parse(pipeline / "gates.xml").getroot()
    cases = [case.get("name") for case in suites.iter("testcase")]
    assert cases[0] == "max_drop_points:onnx:top1"
    summary = (pipeline / "summary.md").read_text(encoding="utf-8")
    # appended: the run's lines, then the comparison's
    assert re.findall(r"^## (.+?):", summary, flags=re.MULTILINE) == [
        "✅ Ship it",
        "✅ Nothing got worse than allowed",
    ]


def test_the_workflow_is_the_document(pipeline, monkeypatch):
    def shape(words: list[str]) -> list[str]:
        return [word for word in words if not word.endswith((".yaml", ".md"))]

    assert [shape(w) for w in workflow_commands()] == [
        shape(w) for w in documented() if w[0] == "vitdeploy"
    ]
    monkeypatch.chdir(pipeline)
    assert exit_code_from(workflow_commands()[1][1:]) == 0


def worse_report(path: Path) -> Path:
    sizes = {**sample().size_bytes, "onnx": 600_000}
    path.write_text(WRITERS["json"].render(sample(size_bytes=sizes)), encoding="utf-8")
    return path


def test_a_regression_is_exit_code_10(tmp_path, capsys):
    good, bad = tmp_path / "good.json", worse_report(tmp_path / "bad.json")
    good.write_text(WRITERS["json"].render(sample()), encoding="utf-8")
    summary = tmp_path / "summary.md"
    words = ["report", "diff", str(good), str(bad)]
    assert exit_code_from(words) == 0  # nobody asked for a limit
    capsys.readouterr()
    code = exit_code_from([*words, "--max-regression", "5%", "--summary", str(summary), "--json"])
    captured = capsys.readouterr()
    assert code == 10
    (row,) = json.loads(captured.out)
    assert row["regression"] == "42.4 % larger, 5 % allowed"
    assert "1 figure(s) got worse: onnx: 42.4 % larger" in captured.err
    assert summary.read_text(encoding="utf-8").startswith("## ❌ 1 figure(s) got worse")
    assert exit_code_from([*words, "--max-regression", "50"]) == 0


@pytest.mark.parametrize("share", ["much", "-5%", "nan", "inf", ""])
def test_a_limit_that_is_no_share_is_refused(tmp_path, capsys, share):
    report = worse_report(tmp_path / "report.json")
    words = ["report", "diff", str(report), str(report), f"--max-regression={share}"]
    assert exit_code_from(words) == 2
    assert "such as 5%" in capsys.readouterr().err


def test_a_summary_that_cannot_be_written_is_said_before_the_work(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    words = ["run", str(recipe), "--output", str(tmp_path / "out"), "--summary", str(tmp_path)]
    assert exit_code_from(words) == 2
    assert not (tmp_path / "out").exists()


def test_documents_name_what_exists():
    names = re.findall(r"\]\(([\w./-]+)\)", DOCUMENT)
    assert len(names) >= 2
    for name in names:
        assert (ROOT / "docs" / name).resolve().is_file(), name
