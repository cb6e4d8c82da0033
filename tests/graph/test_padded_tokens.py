"""pad_tokens_: more tokens in the graph, the same function, in float and in INT8."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph import double
from tests.graph.exactness import assert_exact, canonical, canonical_bytes
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.errors import CompressionError
from vitdeploy.graph import padded_tokens
from vitdeploy.graph.attention import find_attention
from vitdeploy.graph.padded_tokens import pad_tokens_
from vitdeploy.recipe import Int8Section
from vitdeploy.targets import openvino
from vitdeploy.targets.onnx import runner_from_model

MULTIPLE = 11
"""17 tokens become 22, 18 or 21 too, 16 as well."""


@pytest.fixture(autouse=True)
def any_share(monkeypatch):
    """So few tokens as tests have are never worth it."""
    monkeypatch.setattr(padded_tokens, "LARGEST_SHARE", 1.0)


def padded_(model: ir.Model) -> None:
    pad_tokens_(model, find_attention(model), MULTIPLE)


def token_counts(model: ir.Model) -> set[int]:
    shapes = [node.outputs[0].shape for node in model.graph if node.op_type == "Softmax"]
    return {size for shape in shapes if shape is not None for size in shape[-2:]}


@pytest.mark.parametrize(
    "family",
    [
        *("vit", "vit_qk_norm", "deit_distilled", "dinov2_reg", "clip", "hf_vit", "hf_siglip"),
        *("eva02", "dinov3", "eva_qk_norm"),  # rotary positions, which leave the first tokens alone
    ],
)
def test_the_function_is_unchanged(family):
    model = assert_exact(canonical_bytes(family), padded_)
    assert token_counts(model) == {22}
    operators = [node.op_type for node in model.graph]
    assert operators.count("Pad") == 1, "once, in front of the blocks"
    masks = [node for node in model.graph if str(node.name).endswith("/empty_keys")]
    assert len(masks) == operators.count("Softmax")


@pytest.mark.parametrize("family", ["vit", "hf_siglip"])
def test_a_mask_is_what_keeps_it_so(family, monkeypatch):
    monkeypatch.setattr(padded_tokens, "MASKED", 0.0)
    with pytest.raises(AssertionError):
        assert_exact(canonical_bytes(family), padded_)


@pytest.mark.parametrize("most_int8_attention_tokens", [0, 4096])
def test_a_quantised_graph_gives_the_same(most_int8_attention_tokens):
    original = canonical("vit")
    name = original.graph.inputs[0].name
    feeds = [{name: double.images(original, seed=s).astype(np.float32)} for s in range(8)]
    section = Int8Section(placement="all", folds="off", rounding="nearest", clip="minmax")
    scheme = replace(
        openvino.quant_scheme(),
        most_int8_attention_tokens=most_int8_attention_tokens,
        attention_noise_floor=1.0,  # a random model's is noisy
    )
    model = quantize_int8(original, scheme, lambda: iter(feeds), section).model
    softmaxes = [node.outputs[0] for node in model.graph if node.op_type == "Softmax"]
    readers = {node.op_type for value in softmaxes for node in value.consumers()}
    assert readers == {"QuantizeLinear" if most_int8_attention_tokens else "MatMul"}
    padded = model.clone()
    pad_tokens_(padded, find_attention(original), MULTIPLE)
    found = []
    for graph in (model, padded):
        with runner_from_model(graph, settings={"session.disable_quant_qdq": "1"}) as runner:
            (output,) = runner(feeds[0]).values()
            found.append(output)
    assert token_counts(padded) == {22}
    assert double.relative_error(found[1], found[0]) <= 1e-5


def test_features_come_back_without_the_empty_tokens():
    model = canonical("hf_dinov2")
    before = [output.shape for output in model.graph.outputs]
    padded_(model)
    assert [output.shape for output in model.graph.outputs] == before


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("swin", "no norm of"),  # windows: tokens of several images are one batch
        ("sam", "no one number of tokens"),
        ("cait", "no one number of tokens"),  # its class attention has one query
        ("classic_post_norm", "no norm of"),
    ],
)
def test_what_cannot_be_padded_is_refused(family, reason):
    with pytest.raises(CompressionError, match=reason):
        padded_(canonical(family))


def test_tokens_that_are_lost_on_their_way_are_told(monkeypatch):
    known = padded_tokens._BY_TOKEN - {"Gelu"}
    monkeypatch.setattr(padded_tokens, "_BY_TOKEN", known)
    with pytest.raises(CompressionError, match="1 of 2 attentions could not be followed"):
        padded_(canonical("vit"))


def test_what_does_not_pay_is_refused(monkeypatch):
    monkeypatch.setattr(padded_tokens, "LARGEST_SHARE", 1 / 16)
    with pytest.raises(CompressionError, match="17 tokens are padded by 5 of them for nothing"):
        padded_(canonical("vit"))
    with pytest.raises(CompressionError, match="by 0 of them"):
        pad_tokens_(canonical("vit"), find_attention(canonical("vit")), 17)
