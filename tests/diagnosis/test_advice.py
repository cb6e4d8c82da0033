"""What is advised, for which evidence."""

import re
from collections.abc import Sequence

import pytest

from vitdeploy.diagnosis.advice import Evidence, advise
from vitdeploy.diagnosis.html import render
from vitdeploy.diagnosis.schema import (
    Advice,
    Coverage,
    Diagnosis,
    NormRow,
    OverflowRow,
    PartDiagnosis,
    SiteRow,
)


def site(name: str, macs: int = 100, clipped: float = 0.0, share: float = 20.0) -> SiteRow:
    return SiteRow(
        name=name,
        block="",
        kind="MatMul",
        is_int8=True,
        macs=macs,
        made_db=30.0,
        inherited_db=28.0,
        clipped_percent=clipped,
        output_share_percent=share,
    )


def evidence(**changes) -> Evidence:
    fields = {
        "output_db": 20.0,
        "sites": [
            site("a", share=70.0),
            *(site(name, share=5.0) for name in "bdefg"),
            site("c", macs=400, share=5.0),
        ],
        "norms": [],
        "coverage": Coverage(weights_percent=100.0, all_percent=90.0),
        "fp16": [],
    }
    return Evidence(**{**fields, **changes})


def gains(**by_name: float):
    """Output SQNR that rises by a fixed number of dB for each product in float."""

    def output_db(names: Sequence[str]) -> float:
        return 25.0 + sum(by_name.get(name, 0.0) for name in names)

    return output_db


def test_products_are_added_while_each_brings_enough():
    pair = [site("a", share=50.0), site("b", share=45.0)]
    rest = [site(name, macs=400, share=1.0) for name in "cdefg"]
    advice = advise(evidence(sites=pair + rest), gains(a=6.0, b=2.0, c=3.0))
    assert advice.keep_float == ("a", "b")
    # 25 dB on the few images, 20 on all: what counts is the difference
    assert advice.expected_db == pytest.approx(28.0)
    assert 'keep_float: ["a", "b"]' in advice.lines[1]
    assert "int8.choices" in advice.lines[1]


def test_a_spread_error_is_not_worth_float():
    advice = advise(evidence(), gains(a=0.3))
    assert advice.keep_float == ()
    assert advice.expected_db is None
    assert "spread over 7 products, the worst one 70 %" in advice.lines[0]


def test_a_product_with_its_fair_share_is_not_blamed():
    alike = [site(name, share=25.0) for name in "abcd"]
    advice = advise(evidence(sites=alike), gains(a=3.0, b=3.0))
    assert advice.keep_float == ()


def test_never_all_products_are_to_be_float():
    advice = advise(evidence(sites=[site("a", share=100.0)]), gains(a=9.0))
    assert advice.keep_float == ()


def test_losing_the_promise_of_int8_is_said():
    many = [site("c", macs=800, share=90.0), site("a", share=5.0), site("b", share=5.0)]
    advice = advise(evidence(sites=many), gains(c=5.0))
    assert advice.keep_float == ("c",)
    assert "leaves 20 % of the MACs" in advice.lines[2]


def test_without_measurements_the_worst_one_is_named():
    advice = advise(evidence(), None)
    assert advice.keep_float == ("a",)
    assert "not measured" in advice.lines[0]


def test_clipping_outliers_and_overflow_are_told():
    found = evidence(
        sites=[site("a", clipped=9.0), site("b")],
        norms=[NormRow(name="n", before=40.0, after=30.0)],
        fp16=[OverflowRow(name="t", quantity="value", max_abs=1e5, overflows=True)],
    )
    lines = advise(found, gains()).lines
    assert any(line.startswith("9.0 % of what a reads") for line in lines)
    assert any(line.startswith("n still has channels 30 times") for line in lines)
    assert any("exceed FP16's 65504" in line for line in lines)


def page_of(row: SiteRow) -> str:
    part = PartDiagnosis(
        part="model",
        output_db=20.0,
        sites=(row,),
        blocks=(),
        norms=(),
        coverage=Coverage(weights_percent=100.0, all_percent=90.0),
        fp16=(),
        advice=Advice(expected_db_reason="none", lines=("<b>",)),
    )
    return render(
        Diagnosis(
            vitdeploy_version="0",
            model="m & n",
            target="onnx",
            images=1,
            images_from="golden",
            parts=(part,),
        )
    )


def test_names_are_escaped_in_html():
    page = page_of(site("<script>alert(1)</script>"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "m &amp; n" in page
    assert page.count("<rect") == 2


def test_the_note_beside_the_longest_bar_ends_within_the_plot():
    row = site("a", share=100.0).model_copy(update={"made_db": 70.0})
    page = page_of(row)
    (width,) = re.findall(r'viewBox="0 0 (\d+) ', page)
    (start, note) = re.findall(r'<text x="([\d.]+)" y="14">([^<]*)<', page)[-1]
    assert note == "70.0 dB, 100 % of the error"
    pixels_a_letter = 6.5  # 12 px sans serif
    assert float(start) + pixels_a_letter * len(note) <= float(width)
