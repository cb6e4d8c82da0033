"""Q/DQ on the four operands of attention, and on nothing else."""

import onnx
import onnx_ir as ir
import pytest

from tests.graph.exactness import canonical
from vitdeploy.graph.attention import find_attention
from vitdeploy.graph.attention_qdq import insert_attention_qdq_, operands, tokens_of
from vitdeploy.graph.qdq import ActivationRange, QuantScheme

SCHEME = QuantScheme(activation=ir.DataType.INT8, symmetric_activations=True)


def ranges_of(sites: list) -> dict[str, ActivationRange]:
    values = [node.inputs[index] for site in sites for node, index in operands(site, SCHEME)]
    return {str(value.name): ActivationRange(-2.0, 1.0) for value in values}


@pytest.mark.parametrize(("family", "tokens"), [("vit", 17), ("swin", 16), ("dinov2_reg", 21)])
def test_tokens_are_those_a_query_attends_to(family: str, tokens: int):
    assert {tokens_of(site) for site in find_attention(canonical(family))} == {tokens}


def test_the_four_operands_of_the_sites_given_are_quantised():
    model = canonical("vit")
    sites = find_attention(model)
    before = {node.name for node in model.graph}
    insert_attention_qdq_(model, sites[:1], ranges_of(sites), SCHEME)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    new = [node for node in model.graph if node.name not in before]
    assert sorted(node.op_type for node in new) == ["DequantizeLinear"] * 4 + ["QuantizeLinear"] * 4
    for site, expected in zip(sites, (True, False), strict=True):
        makers = [node.inputs[index].producer() for node, index in operands(site, SCHEME)]
        assert all((m.op_type == "DequantizeLinear") == expected for m in makers)
    scale, zero = new[0].inputs[1:3]
    assert scale.const_value.numpy() == pytest.approx(2.0 / 127.0)
    assert zero.const_value.numpy() == 0


def test_a_range_that_is_missing_is_an_error():
    model = canonical("vit")
    with pytest.raises(KeyError):
        insert_attention_qdq_(model, find_attention(model), {}, SCHEME)
