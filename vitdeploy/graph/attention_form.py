"""The forms that attention can be written in, for an engine to say which is the fastest."""

import onnx_ir as ir

from vitdeploy.errors import CompressionError
from vitdeploy.graph.attention import find_attention
from vitdeploy.graph.fused_attention import fuse_attention_
from vitdeploy.graph.packed_qkv import split_qkv_
from vitdeploy.graph.padded_tokens import pad_tokens_
from vitdeploy.recipe import AttentionForm

_MULTIPLES = {"padded-8": 8, "padded-32": 32}
"""Of tokens: rows that vector kernels and AMX tiles take at a time."""


def in_attention_form(model: ir.Model, original: ir.Model, form: AttentionForm) -> ir.Model:
    """Return a copy of a graph with its attention in another form, the function unchanged.

    Args:
        model: FP32, or with Q/DQ; not changed.
        original: the FP32 graph that it was made from.
        form: wanted; `as-exported` returns the model itself.

    Raises:
        CompressionError: no attention of this graph can be written so.
    """
    if form == "as-exported":
        return model
    copy, sites = model.clone(), find_attention(original)
    if form in _MULTIPLES:
        pad_tokens_(copy, sites, _MULTIPLES[form])
        return copy
    refused = split_qkv_(copy, sites)
    changed = [site for site in sites if site.packed]
    if form == "fused":
        apart = original.clone()
        split_qkv_(apart)
        changed = find_attention(apart)
        refused = fuse_attention_(copy, changed)
    if len(refused) >= len(changed):
        reason = refused[0][1] if refused else "q, k and v are apart as it is"
        raise CompressionError(f"attention cannot be {form} here: {reason}.")
    return copy
