"""Forms and element types that no importer takes."""

import pytest

from tests.lint.graphs import graph
from tests.lint.verdicts import whys


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("g (uint64[4] x) => (uint64[4] y) { y = Identity(x) }", "no type UINT64"),
        ("g (float[4] x) => (int16[4] y) { y = Cast <to = 5> (x) }", "casts to INT16"),
        (
            "g (float[4,4] x, int64[1] a) => (float[n] y) { y = ReduceMean <keepdims = 0> (x, a) }",
            "computed at run time",
        ),
        (
            "g (float[1,1,8,8] x) => (float[1,1,6,6] y) "
            "{ y = MaxPool <kernel_shape = [2,2], dilations = [2,2]> (x) }",
            "dilated",
        ),
        (
            "g (float[1,1,8,8] x) => (float[1,1,7,7] y, int64[1,1,7,7] i) "
            "{ y, i = MaxPool <kernel_shape = [2,2]> (x) }",
            "indices 'i'",
        ),
    ],
)
def test_forms_that_no_parser_takes(text: str, why: str):
    assert why in whys(graph(text), 12, "trt-rtx")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("y = Attention <softcap = 3.0> (x, x, x)", "softcap"),
        ("y = Attention (x, x, x, , x, x)", "past keys"),
        ("y, k, v = Attention (x, x, x)", "present keys"),
        ("y = Attention (x, x, x)", ""),
    ],
)
def test_the_attention_operator(text: str, why: str):
    model = graph(f"g (float[1,2,4,8] x) => (float[1,2,4,8] y) {{ {text} }}", 23)
    found = whys(model, 12, "11")
    assert why in found
    assert bool(found) is bool(why)
