"""Where Q/DQ pairs bring nothing."""

import pytest

from tests.lint import graphs
from tests.lint.verdicts import whys


@pytest.mark.parametrize("operator", ["LayerNormalization", "Softmax", "Gelu", "Erf"])
def test_what_stays_float(operator: str):
    assert f"input of {operator}" in whys(graphs.quantized_before(operator), 25)


def test_biases_and_outputs():
    assert "bias 'codes'" in whys(graphs.quantized_bias(), 25)
    model = graphs.quantized_before("MatMul")
    del model.graph.node[2:]
    model.graph.output[0].name = "d"
    assert "output 'd'" in whys(model, 25)


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (4, 1)])
def test_single_rows_and_columns(rows: int, columns: int):
    assert "INT8 product" in whys(graphs.narrow_product(rows, columns), 27)


def test_convolutions_of_few_channels():
    assert "3 to 64" in whys(graphs.convolution(3, 64), 27)
    assert whys(graphs.convolution(16, 16), 27) == ""
