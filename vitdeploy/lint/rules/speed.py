"""Rules about what keeps attention in one fused INT8 kernel."""

from collections.abc import Iterator

from vitdeploy.lint.attention import Attention, attentions, layer_above
from vitdeploy.lint.graph import LintGraph
from vitdeploy.lint.qdq import LAYOUT, dequantized_by, is_activation, scale_size
from vitdeploy.lint.rule import Finding, Rule, found
from vitdeploy.lint.versions import TensorRT

MOST_TOKENS = 512
"""512 tokens fuse in INT8, 513 do not; float attention fuses at 4096."""


def _any_attention(graph: LintGraph, _version: TensorRT) -> bool:
    return any(True for _ in attentions(graph))


def _any_quantized(graph: LintGraph, _version: TensorRT) -> bool:
    return any(site.quantized for site in attentions(graph))


def _missing(site: Attention) -> list[str]:
    return [name for name in site.operands if name not in site.quantized]


def _whole_attention(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for site in attentions(graph):
        missing = _missing(site)
        if site.quantized and missing:
            yield found(
                site.softmax,
                f"{', '.join(site.quantized)} quantised, {', '.join(missing)} not",
            )


def _long_attention(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for site in attentions(graph):
        if site.quantized and site.tokens is not None and site.tokens > MOST_TOKENS:
            yield found(site.softmax, f"quantised attention over {site.tokens} tokens")


def _packed_qkv(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    told = set()
    for site in attentions(graph):
        layers = [layer_above(graph, site.operands[role]) for role in ("q", "k", "v")]
        for layer in layers:
            if layer is None or layers.count(layer) < 2 or layer in told:
                continue
            weight = dequantized_by(graph, layer.inputs[1], LAYOUT)
            runs_int8 = is_activation(graph, dequantized_by(graph, layer.inputs[0], LAYOUT))
            scales = scale_size(graph, weight) if weight and runs_int8 else None
            if scales is not None and scales > 1:
                told.add(layer)
                yield found(layer, f"one weight with {scales} scales makes several of q, k and v")


def _attention_bias(graph: LintGraph, _version: TensorRT) -> Iterator[Finding]:
    for site in attentions(graph):
        moving = [value for value in site.biases if not graph.is_static(value)]
        if moving and not _missing(site):
            names = ", ".join(str(value.name) for value in moving)
            yield found(
                site.softmax, f"'{names}', which depends on an input, is added to the scores"
            )


WHOLE_ATTENTION = Rule(
    21,
    "whole-attention",
    "warning",
    "attention quantised whole or not at all",
    "the fused INT8 kernel needs q, k, v and the softmax's output quantised; in part, attention "
    "falls apart into 17 kernels instead of 12",
    "quantise all four, or none",
    _any_attention,
    _whole_attention,
)
LONG_ATTENTION = Rule(
    22,
    "long-attention",
    "warning",
    f"attention of more than {MOST_TOKENS} tokens in float",
    f"INT8 attention fuses up to {MOST_TOKENS} tokens, float attention at any length",
    "take the Q/DQ off q, k, v and the softmax's output",
    _any_quantized,
    _long_attention,
)
PACKED_QKV = Rule(
    23,
    "packed-qkv",
    "warning",
    "q, k and v from three weights where scales are per channel",
    "a packed weight with per-channel scales is dequantised and multiplied in FP16 (seen with "
    "TensorRT for RTX)",
    "split the weight into q, k and v: the same numbers, and one INT8 product",
    _any_attention,
    _packed_qkv,
)
ATTENTION_BIAS = Rule(
    24,
    "attention-bias",
    "warning",
    "what is added to quantised scores is constant",
    "a constant bias (Swin's) keeps the fused INT8 kernel, one computed from the input may not",
    "compute the bias at export, or leave this attention in float",
    _any_quantized,
    _attention_bias,
)
