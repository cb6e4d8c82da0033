from html.parser import HTMLParser

import pytest

from tests.advising.rows import tried_row
from vitdeploy.advising.html import columns, render, table_cells
from vitdeploy.advising.schema import Advice


@pytest.fixture
def advice() -> Advice:
    rows = (
        tried_row("fp32 onnx", 0.0, 1.0),
        tried_row("int8 onnx", 0.7, 0.5),
        tried_row("w4a16 onnx", 40.0, 0.2),
        tried_row("bf16 onnx", None, None, status="failed", reason="no <b>bf16</b> here"),
    )
    return Advice(
        vitdeploy_version="1",
        model="<script>alert(1)</script>",
        objective="latency",
        max_drop_points=1.0,
        budget_seconds=60,
        seconds=9,
        rows=rows,
        front=("w4a16 onnx", "int8 onnx", "fp32 onnx"),
        recommended="int8 onnx",
        recommended_reason="int8 onnx: half the time",
        command="vitdeploy run a/recommended.yaml --output b",
        is_complete=True,
        environment={"cpu": "some CPU"},
    )


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_every_candidate_and_the_command(advice: Advice):
    page = Page(render(advice))
    for row in advice.rows:
        for cell in table_cells(row, "latency"):
            assert not cell or cell in page.words
    assert advice.command in page.words


def test_names_are_escaped_and_nothing_is_loaded(advice: Advice):
    text = render(advice)
    page = Page(text)
    assert not {"script", "link", "img", "b"} & {tag for tag, _ in page.tags}
    assert "http" not in text
    assert "no <b>bf16</b> here" in page.words


def test_the_plot_has_what_was_measured_and_marks_what_to_ship(advice: Advice):
    circles = [attributes for tag, attributes in Page(render(advice)).tags if tag == "circle"]
    assert sorted(str(circle["class"]) for circle in circles) == ["best", "on", "on"]
    x = {str(c["class"]): float(str(c["cx"])) for c in circles}
    fp32 = max(float(str(c["cx"])) for c in circles)
    assert x["best"] < fp32
    # 40 points lost are drawn at the edge, so that those near the limit stay apart
    ys = sorted(float(str(c["cy"])) for c in circles)
    assert ys[2] - ys[1] > 30


def test_a_page_without_a_recommendation(advice: Advice):
    changes = {"recommended": None, "command": None, "front": (), "rows": advice.rows[3:]}
    text = render(advice.model_copy(update=changes))
    assert "Nothing was measured" in text
    assert "<code>" not in text


def test_energy_is_shown_where_it_is_asked_for(advice: Advice):
    row = advice.rows[0].model_copy(update={"energy_mj": 12.34})
    cells = dict(zip(columns("energy"), table_cells(row, "energy"), strict=True))
    assert cells["mJ"] == "12.3"
    assert "mJ" not in columns("size")
