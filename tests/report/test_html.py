"""`report.html` is one well-formed file without network or script that shows every figure."""

import re
from html.parser import HTMLParser

import pytest

from tests.report.pictures import pictured_sample, profiled_sample
from tests.report.samples import failing_sample, sample, two_part_sample
from vitdeploy.report import WRITERS
from vitdeploy.report import html as html_writer

VOID = {"meta", "rect", "circle", "path", "img"}


class Page(HTMLParser):
    """Collects tags and text, and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(report):
    return Page(WRITERS["html"].render(report))


def pictured_masks():
    return pictured_sample(masks=True)


@pytest.mark.parametrize(
    "make",
    [sample, failing_sample, two_part_sample, pictured_sample, pictured_masks, profiled_sample],
)
def test_it_needs_nothing_outside_itself(make):
    text = WRITERS["html"].render(make())
    found = Page(text)
    names = {name for name, _ in found.attributes}
    assert not names & {"srcset", "data", "action", "onload", "onclick"}
    assert not {"script", "link", "iframe", "object", "image"} & set(found.tags)
    for name, value in found.attributes:
        if name == "src":
            assert value.startswith("data:image/jpeg;base64,")
        elif name in {"href", "xlink:href"}:
            assert value.startswith("#")  # within the page
    assert text.count("url(") == text.count("url(#")
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text
    assert len(text) < 3e6


def test_identifiers_are_unique_and_found():
    found = Page(WRITERS["html"].render(pictured_sample()))
    names = [value for name, value in found.attributes if name == "id"]
    assert len(names) == len(set(names)) > 20
    used = {value[1:] for name, value in found.attributes if name == "href"}
    used |= {v[5:-1] for name, v in found.attributes if name == "clip-path"}
    assert used <= set(names)


def test_equal_reports_are_equal_pages():
    assert WRITERS["html"].render(pictured_sample()) == WRITERS["html"].render(pictured_sample())


def test_values_are_escaped():
    text = WRITERS["html"].render(failing_sample())
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    assert "<b>bold" not in text
    assert "<script>alert('x')</script> & \"co\"" in page(failing_sample()).text


def test_the_verdict_leads():
    assert "Passed: all 3 gates" in page(sample()).text
    text = page(failing_sample()).text
    assert "Failed: 2 of 3 gates" in text
    assert "Do not ship" in text
    assert text.index("Do not ship") < text.index("Fidelity")
    assert "Speed-up on ONNX Runtime: 0.77×, at least 1.5×" in text
    assert "not measured, at least 1.5× (the engine cannot run on this machine" in text
    assert "No gates were set" in page(two_part_sample()).text


def test_the_cards_hold_the_key_figures():
    text = page(sample()).text
    assert "98.33 → 97.78 %" in text
    assert "−0.55 points on 360 images" in text
    assert "2.51× faster" in text
    assert "1.21 ms → 0.48 ms, median" in text
    assert "3.00× smaller" in text
    assert "1.26 MB → 421 kB" in text
    assert "97.2 %" in text
    assert "1.30× slower" in page(failing_sample()).text


def test_stamps_notes_and_reasons_are_shown():
    text = page(failing_sample()).text
    assert "random-weights" in text
    assert "Calibrated on rendered pictures" in text
    assert "1.3x slower than FP32" in text
    assert "int8 ranges came with the file" in text
    assert "80 samples; 100 are needed" in page(sample()).text


def test_every_section_has_its_table():
    tags = page(sample()).tags
    text = page(sample()).text
    for title in ("Fidelity", "Latency", "Gates", "Images", "Stages", "Environment", "Artefacts"):
        assert title in text
    assert tags.count("table") == tags.count("caption") == 8
    assert "Export parity" in text
    assert "An Imaginary CPU" in text


def test_a_bare_report_renders():
    lists = ("artifacts", "fidelity", "latency", "parity", "gates", "stages", "stamps", "notes")
    bare = sample(
        **{name: [] for name in lists},
        speedup={},
        size_bytes={},
        environment={},
    )
    assert "vit-digits" in page(bare).text
    for name in ("markdown", "junit", "json"):
        assert WRITERS[name].render(bare)


def test_bars_are_in_proportion_and_within_the_axis():
    (chart,) = html_writer._latency_charts(sample())
    reference, onnx, openvino = chart.bars
    assert reference.tick == 100  # the longest p99 is the axis
    # 0.01: the lengths are rounded to two digits.
    assert onnx.solid / reference.solid == pytest.approx(0.74 / 1.21, abs=0.01)
    assert reference.is_reference
    assert openvino.tick == 0  # too few samples for a p99
    assert openvino.detail == "p50 0.48 ms, p90 0.55 ms"


def test_an_outlier_does_not_squeeze_the_bars():
    (chart,) = html_writer._latency_charts(failing_sample())
    assert [bar.label for bar in chart.bars] == ["FP32 reference", "ONNX Runtime"]
    assert chart.bars[1].solid == 50  # the axis ends at twice the longest median
    assert chart.bars[1].tick == 0
    assert chart.bars[1].beyond == "p99 9.70 ms ›"


def test_pictures_have_words():
    text = WRITERS["html"].render(sample())
    for svg in re.findall(r"<svg[^>]*>", text):
        assert 'aria-label="' in svg or 'aria-hidden="true"' in svg
    assert 'aria-label="OpenVINO: p50 0.48 ms, p90 0.55 ms"' in text
    assert "prefers-color-scheme: dark" in text
    assert '<html lang="en">' in text


def test_charts_follow_the_page_and_are_said_in_words():
    text = WRITERS["html"].render(pictured_sample())
    charts = re.findall(r'<svg class="chart" role="img" aria-label="([^"]*)"', text)
    assert charts == [
        "Distribution of model, batch 1",
        "Top-1",
        "INT8 error by block of model",
        "Outliers before and after folding, ONNX Runtime, model",
    ]
    for sentinel in ("#010101", "#0a0101"):
        assert sentinel not in text
    assert "fill: var(--series-1)" in text
    assert "DejaVu" not in text


def test_worst_images_show_what_flipped():
    text = page(pictured_sample()).text
    assert "4 flipped" in text
    assert "1 → 3 image-001.png · label 1 · Cosine 0.85" in text
    assert "The 4 masks that agree least" in page(pictured_masks()).text
    assert Page(WRITERS["html"].render(pictured_masks())).tags.count("img") == 2 * 4 * 2


def test_it_says_how_to_do_it_again():
    text = page(sample()).text
    assert "vitdeploy run recipe.yaml --output again" in text
    assert "pip install vitdeploy==0.1.0" in text


def test_a_profile_has_its_ratios_costs_and_roofline():
    text = page(profiled_sample()).text
    assert "2.000× 1.920 to 2.080" in text
    assert "Loading and memory" in text
    assert "How far from the limit" in text
    assert "b:onnx, model: 40 %" in text  # the roofline's legend
    assert "BF16, INT8 0.84 TOPS" in text
    assert "Ship" not in text  # nobody asked
