"""INT8 attention: all four operands or none, only where it fuses, only while it is quiet."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.exactness import canonical
from vitdeploy.compress import int8
from vitdeploy.compress.attention_int8 import quietest
from vitdeploy.compress.int8 import Int8Result, quantize_int8
from vitdeploy.errors import CompressionError
from vitdeploy.graph.attention import find_attention
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.graph.surgery import constant_of
from vitdeploy.recipe import Int8Choices, Int8Section
from vitdeploy.targets.onnx import runner_from_model

SCHEME = {
    "activation": ir.DataType.INT8,
    "symmetric_activations": True,
    "splits_qkv": True,
    "most_int8_attention_tokens": 512,
    "int8_attention_head_dims": (16,),
    "attention_noise_floor": 1.0,  # random models are noisier than trained ones
}
PIXELS = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
OPTIONS = {"placement": "all", "folds": "off", "clip": "minmax", "rounding": "nearest"}


def quantize(
    family: str,
    pinned: Int8Choices | None = None,
    options: dict | None = None,
    images: tuple[np.ndarray, np.ndarray] = (PIXELS[:2], PIXELS[2:]),
    **scheme: object,
) -> Int8Result:
    feeds = [{"pixel_values": pixels} for pixels in images]
    return quantize_int8(
        canonical(family),
        QuantScheme(**{**SCHEME, **scheme}),
        lambda: iter(feeds),
        Int8Section(**{**OPTIONS, **(options or {})}),
        pinned=pinned,
    )


def operands(model: ir.Model) -> list[list[ir.Node]]:
    """By attention: what its four operands come from, the softmax third."""
    found = []
    for softmax in (node for node in model.graph if node.op_type == "Softmax"):
        products = [softmax.inputs[0].producer()]
        after = softmax.outputs[0].uses()[0].node
        while after.op_type in ("QuantizeLinear", "DequantizeLinear"):
            after = after.outputs[0].uses()[0].node
        found.append([value.producer() for p in (*products, after) for value in p.inputs])
    return found


def operands_in_int8(model: ir.Model) -> list[int]:
    """By attention: how many of its four operands come from a DequantizeLinear."""
    return [sum(n.op_type == "DequantizeLinear" for n in nodes) for nodes in operands(model)]


@pytest.mark.parametrize("family", ["vit", "hf_dinov2"])
def test_all_four_operands_are_quantised(family: str):
    result = quantize(family)
    assert operands_in_int8(result.model) == [4, 4]
    assert all(0 < ceiling <= 1 for ceiling in result.attention.ceilings.values())
    assert result.choices.attention_int8 == result.attention.ceilings
    assert all(noise > 0 for noise in result.attention.noise.values())
    with runner_from_model(canonical(family)) as a, runner_from_model(result.model) as b:
        x, y = (r({"pixel_values": PIXELS})["logits"].astype(np.float64) for r in (a, b))
    # 8 bits of a uniform softmax over 17 tokens leave it 6 codes: some 25 dB in each of two layers
    assert 10 * np.log10(np.square(x).sum() / np.square(x - y).sum()) > 20


def test_a_noisy_site_stays_float_throughout():
    result = quantize("vit", attention_noise_floor=0.0)
    assert operands_in_int8(result.model) == [0, 0]
    assert [reason for _, reason in result.attention.kept_float] == [
        "its noise is out of proportion"
    ] * 2


def test_it_is_judged_on_other_images_than_those_that_gave_its_ranges(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(int8, "mixed", lambda batches, _: list(batches()))
    # 48 dB: what images like those of the ranges stay far below, and others do not
    limit = {"attention_noise_floor": 1.5e-5}
    blank, shown = np.zeros_like(PIXELS[:2]), PIXELS[2:]
    assert len(quantize("vit", images=(shown, blank), **limit).attention.ceilings) == 2
    surprised = quantize("vit", images=(blank, shown), **limit).attention
    assert max(surprised.noise.values()) > 1e-4
    assert len(surprised.ceilings) < 2


def test_the_extremes_are_of_both_halves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(int8, "mixed", lambda batches, _: list(batches()))
    blank, shown = np.zeros_like(PIXELS[:2]), PIXELS[2:]
    scales = [
        [
            constant_of(node.inputs[1]).item()
            for nodes in operands(quantize("vit", images=images).model)
            for node in (*nodes[:2], nodes[3])
        ]
        for images in ((blank, shown), (shown, blank))
    ]
    assert len(scales[0]) == 6
    assert scales[0] == pytest.approx(scales[1], rel=1e-6)


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ({"most_int8_attention_tokens": 16}, "17 tokens, and INT8 attention fuses up to 16"),
        ({"int8_attention_head_dims": (32, 64)}, "heads of 16 channels"),
    ],
)
def test_what_does_not_fuse_stays_float(scheme: dict, reason: str):
    result = quantize("vit", **scheme)
    assert operands_in_int8(result.model) == [0, 0]
    assert all(reason in seen for _, seen in result.attention.kept_float)


def test_attention_before_a_float_layer_stays_float():
    result = quantize("vit", options={"keep_float": ("*.0.attn.proj/*",)})
    assert operands_in_int8(result.model) == [0, 4]
    ((_, reason),) = result.attention.kept_float
    assert "the layer after it is float" in reason


def test_attention_with_relative_position_counts_its_windows():
    result = quantize("swin", int8_attention_head_dims=(12,))
    assert len(result.attention.ceilings) == 3


def test_a_scheme_without_int8_attention_changes_none():
    result = quantize("vit", most_int8_attention_tokens=0)
    assert operands_in_int8(result.model) == [0, 0]
    assert result.choices.attention_int8 == {}


def test_no_time_to_measure_leaves_it_float():
    result = quantize("vit", options={"search_seconds": 0.0})
    assert operands_in_int8(result.model) == [0, 0]
    assert "would take more than 0 s" in result.attention.kept_float[0][1]


def test_pinned_choices_give_the_same_graph():
    first = quantize("vit")
    again = quantize("vit", pinned=first.choices)
    one, other = (
        ir.to_proto(r.model).SerializeToString(deterministic=True) for r in (first, again)
    )
    assert one == other
    assert again.attention.noise == {}


def test_refuses_a_pin_that_fits_nothing():
    with pytest.raises(CompressionError, match=r"attention 'blocks\.9\.attn'"):
        quantize("vit", pinned=Int8Choices(attention_int8={"blocks.9.attn": 1.0}))


def test_the_quietest_are_kept_as_long_as_they_are_quiet_together():
    noise = {"a": 3.0, "b": 1.0, "c": 2.0}

    def doubled(names: list[str]) -> float:
        return 2 * sum(noise[name] for name in names)

    assert quietest(noise, 6.0, doubled) == ["b", "c"]
    assert quietest(noise, 12.0, doubled) == ["a", "b", "c"]
    assert quietest(noise, 1.0, doubled) == []


PACKED = {
    "activation": ir.DataType.UINT8,
    "symmetric_activations": False,
    "splits_qkv": False,
    "packs_attention": True,
    "int8_attention_head_dims": (),
}


def test_packed_attention_has_one_symmetric_range_for_q_k_and_v():
    result = quantize("vit", **PACKED)
    assert len(result.attention.ceilings) == 2
    # The split into q, k and v comes behind the one pair, so the products see no pair of their own.
    assert operands_in_int8(result.model) == [1, 1]
    sites = find_attention(quantize("vit", **PACKED, most_int8_attention_tokens=0).model)
    for site in sites:
        packed = next(node for node in result.model.graph if node.name == site.query.linear.name)
        quantizers = [
            node
            for node in result.model.graph
            if node.op_type == "QuantizeLinear" and node.inputs[0] is site_output(packed)
        ]
        (quantize_node,) = quantizers
        zero = quantize_node.inputs[2].const_value.numpy()
        assert (zero.dtype, int(zero)) == (np.int8, 0)


@pytest.mark.parametrize(("share", "sites"), [(0.0, 0), (0.1, 1), (100.0, 2)])
def test_it_may_add_a_share_of_the_noise_of_products(share: float, sites: int):
    result = quantize("vit", **PACKED, attention_noise_floor=0.0, attention_noise_share=share)
    assert len(result.attention.ceilings) == sites


def site_output(product: ir.Node) -> ir.Value:
    """What leaves a layer: behind its bias."""
    (use,) = product.outputs[0].uses()
    return use.node.outputs[0]


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("swin", "it has a bias, behind which INT8 attention is no faster"),
        ("hf_dinov2", "q, k and v do not reach their products as one layer gives them"),
    ],
)
def test_what_cannot_be_packed_stays_in_float(family: str, reason: str):
    result = quantize(family, **PACKED)
    assert not result.attention.ceilings
    assert {why for _, why in result.attention.kept_float} == {reason}
