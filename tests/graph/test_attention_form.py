"""in_attention_form: another form of attention, in float and in INT8."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph import double
from tests.graph.exactness import canonical
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.errors import CompressionError
from vitdeploy.graph.attention_form import in_attention_form
from vitdeploy.recipe import Int8Section
from vitdeploy.targets import load_target, onnx, openvino
from vitdeploy.targets.onnx import runner_from_model

CHEAP = Int8Section(placement="all", folds="off", rounding="nearest", clip="minmax")


def feeds_of(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    return {model.graph.inputs[0].name: double.images(model, seed=seed).astype(np.float32)}


def quantized(model: ir.Model, scheme) -> ir.Model:
    feeds = [feeds_of(model, seed) for seed in range(8)]
    return quantize_int8(model, scheme, lambda: iter(feeds), CHEAP).model


def exact_output(model: ir.Model) -> np.ndarray:
    """Compute the Q/DQ as they stand: no kernel of its own for a packed or a split product."""
    settings = {"session.disable_quant_qdq": "1"}
    with runner_from_model(model, settings=settings) as runner:
        (output,) = runner(feeds_of(model)).values()
    return output


def test_as_exported_is_the_model_itself():
    model = canonical("vit")
    assert in_attention_form(model, model, "as-exported") is model


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_quantised_graph_has_the_same_codes_apart(family, target):
    original = canonical(family)
    scheme = load_target(target).quant_scheme()
    model = quantized(original, replace(scheme, weight_bits=8))
    apart = in_attention_form(model, original, "split")
    names = {str(node.name) for node in apart.graph}
    assert any(name.endswith("attn.qkv.query/MatMul") for name in names)
    assert not any("qkv/MatMul" in name for name in names)
    # float32 sums of the same codes and scales, column by column
    expected = exact_output(model)
    error = double.relative_error(exact_output(apart), expected)
    assert error <= 1e-5
    assert any("qkv/MatMul" in str(node.name) for node in model.graph), "the argument is changed"


def test_attention_in_int8_keeps_its_ranges_apart():
    original = canonical("vit")
    scheme = replace(
        openvino.quant_scheme(),
        most_int8_attention_tokens=4096,
        attention_noise_floor=1.0,  # both sites, although a random model's are noisy
        weight_bits=8,
    )
    model = quantized(original, scheme)
    kinds = [node.op_type for node in model.graph]
    apart = in_attention_form(model, original, "split")
    added = [node.op_type for node in apart.graph].count("QuantizeLinear")
    # one pair on q, k and v together becomes three
    assert added == kinds.count("QuantizeLinear") + 2 * kinds.count("Softmax")
    assert double.relative_error(exact_output(apart), exact_output(model)) <= 1e-5
    with pytest.raises(CompressionError, match="INT8 throughout"):
        in_attention_form(model, original, "fused")


def test_products_in_int8_around_the_fused_operator():
    original = canonical("vit")
    model = quantized(original, onnx.quant_scheme())
    fused = in_attention_form(model, original, "fused")
    assert "MultiHeadAttention" in [node.op_type for node in fused.graph]
    noise = double.relative_error(exact_output(model), exact_output(original))
    # float attention in another order of sums may move a code by one
    assert double.relative_error(exact_output(fused), exact_output(model)) <= 0.5 * noise


@pytest.mark.parametrize(
    ("family", "form", "reason"),
    [
        ("hf_dinov2", "split", "apart as it is"),
        ("swin", "fused", "something is added"),
        ("sam", "split", "does not make"),
        ("vit", "padded-8", "for nothing"),
    ],
)
def test_a_form_that_changes_nothing_is_refused(family, form, reason):
    model = canonical(family)
    with pytest.raises(CompressionError, match=reason):
        in_attention_form(model, model, form)
