"""Attention: in part, long, packed, with a bias."""

import pytest

from tests.lint.attention_graph import Attention
from tests.lint.verdicts import lint, result, whys


@pytest.mark.parametrize("quantized", ["q", "qk", "qkv", "s", "sv"])
def test_any_part_of_it_is_a_part(quantized: str):
    assert whys(Attention(quantized=quantized).proto(), 21)


def test_float_attention_is_whole():
    model = Attention(quantized="", tokens=600).proto()
    assert result(lint(model), 21).verdict == "pass"
    assert result(lint(model), 22).verdict == "not_applicable"


def test_a_moving_bias_is_no_matter_in_float():
    model = Attention(quantized="", bias="input").proto()
    assert result(lint(model), 24).verdict == "not_applicable"


def test_the_bias_is_no_residual():
    report = lint(Attention(bias="input").proto())
    assert result(report, 26).verdict == "pass"
