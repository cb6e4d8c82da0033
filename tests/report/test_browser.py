"""`report.html` in a browser: quiet, offline, within the screen; its figures are the JSON's."""

import json
import re

import pytest

from tests.real_parts import require
from tests.report.chromium import MISSING, chromium
from tests.report.pictures import pictured_sample, profiled_sample
from tests.report.samples import failing_sample
from vitdeploy.report import WRITERS, read_report, summary

SAMPLES = {
    "pictured": pictured_sample,
    "masks": lambda: pictured_sample(masks=True),
    "failing": failing_sample,
    "profile": profiled_sample,
}
# Rows of a table as lists of text, small print without its reason's number.
TABLE = """[...document.querySelectorAll("table")]
    .filter(table => table.caption.innerText === %s)
    .flatMap(table => [...table.tBodies[0].rows])
    .map(row => [...row.cells].map(cell => cell.innerText.replace(/\\s+/g, " ").trim()))"""


@pytest.fixture(scope="module")
def tab():
    require(MISSING)
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in SAMPLES.items():
        report = make()
        (folder / f"{name}.html").write_text(WRITERS["html"].render(report), encoding="utf-8")
        (folder / f"{name}.json").write_text(WRITERS["json"].render(report), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_quiet_offline_and_fits(tab, pages, name, width):
    url = (pages / f"{name}.html").as_uri()
    tab.open(url, width, dark=width == 390)
    assert tab.complaints() == []
    assert [r for r in tab.requests() if not r.startswith("data:image/jpeg;base64,")] == [url]
    # Wide tables scroll by themselves; the page never does.
    assert tab.value("document.documentElement.scrollWidth") == width
    assert tab.value("[...document.images].every(image => image.naturalWidth > 0)")
    small = """[...document.querySelectorAll('svg.chart text')].map(text => {
        const matrix = text.getScreenCTM();
        return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b);
    })"""
    # CSS pixels: what can still be read on a telephone.
    assert min(tab.value(small), default=9) > 8


def test_the_verdict_is_on_the_first_screen_of_a_telephone(tab, pages):
    tab.open((pages / "failing.html").as_uri(), 390, 844)
    bottom = "document.querySelector('.verdict strong').getBoundingClientRect().bottom"
    assert tab.value(bottom) < 844
    assert tab.value("document.querySelector('.verdict strong').innerText") == "Do not ship"


def test_charts_have_the_colours_of_the_page(tab, pages):
    fill = "getComputedStyle(document.querySelector('svg.chart text')).fill"
    seen = []
    for dark in (False, True):
        tab.open((pages / "pictured.html").as_uri(), 1280, dark=dark)
        seen.append(tab.value(fill))
    assert seen[0] != seen[1]


def test_its_figures_are_those_of_the_json(tab, pages):
    report = read_report(pages / "pictured.json")
    tab.open((pages / "pictured.html").as_uri(), 1280)
    rows = tab.value(TABLE % json.dumps("Latency"))
    assert len(rows) == len(report.latency) == 3
    for row, item in zip(rows, report.latency, strict=True):
        assert row[0] == summary.target_label(item.target)
        assert row[5] == summary.format_ms(item.p50_ms)
        assert row[6] == summary.format_ms(item.p90_ms)
        assert row[-1] == str(item.samples)
    rows = {row[0]: row for row in tab.value(TABLE % json.dumps("Fidelity"))}
    for item in report.fidelity:
        column = 2 + ("onnx", "openvino").index(item.target)
        shown = rows[summary.metric_label(item.metric)][column]
        assert shown.startswith(summary.format_metric(item, item.value))
    gates = tab.value(TABLE % json.dumps("Gates"))
    assert [[row[0], float(row[2])] for row in gates] == [[g.name, g.value] for g in report.gates]


def test_the_charts_show_the_json(tab, pages):
    """Where the marks lie on the screen, against the axis that the chart itself labels."""
    report = read_report(pages / "pictured.json")
    tab.open((pages / "pictured.html").as_uri(), 1280)
    chart = "document.querySelector('svg.chart[aria-label^=\"INT8 error\"]')"
    boxes = tab.value(
        f"[...{chart}.querySelectorAll('path')].filter(p => /fill: var\\(--series/."
        "test(p.getAttribute('style'))).map(p => { const b = p.getBoundingClientRect(); "
        "return [p.getAttribute('style').match(/series-(.)/)[1], b.top, b.width] })"
    )
    for number, target in (("1", "onnx"), ("2", "openvino")):
        noise = [row.noise for row in report.sensitivity if row.target == target]
        widths = [w for n, _, w in sorted(boxes, key=lambda box: box[1]) if n == number]
        widths = widths[-len(noise) :]  # the legend's own stands above
        assert len(widths) == len(noise)
        for width, value in zip(widths, noise, strict=True):
            # A pixel: the browser rounds boxes.
            assert width == pytest.approx(max(widths) * value / max(noise), abs=1)


def test_it_prints_on_paper(tab, pages):
    tab.open((pages / "pictured.html").as_uri(), 1280)
    content = tab.pdf()
    assert content.startswith(b"%PDF")
    count = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 2 <= count <= 8
