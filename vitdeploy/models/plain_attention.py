"""Attention as products and a softmax, for tracing: what torch's fused operator computes.

Exporters take `scaled_dot_product_attention` only in the forms that they know; written out, every
form exports, and as the pattern that the graph passes recognise.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def written_out_attention() -> Iterator[None]:
    """Have `torch.nn.functional.scaled_dot_product_attention` compute by products meanwhile.

    Two faults of torch 2.15 and onnxscript 0.7 go with it: the fused operator's result is laid out
    in memory as its decomposition's is not, so that a traced view fails (BEiT;
    pytorch/pytorch#141107, open), and only inputs of four axes are translated (Hiera;
    microsoft/onnxscript#2558).
    """
    import torch

    functional: Any = torch.nn.functional
    fused = functional.scaled_dot_product_attention

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **rest: Any) -> Any:
        if not _is_plain(attn_mask, rest):
            return fused(query, key, value, attn_mask, **rest)
        factor = rest.get("scale") or 1.0 / math.sqrt(query.shape[-1])
        scores = (query * factor) @ key.transpose(-2, -1)
        if attn_mask is not None:
            scores = scores + attn_mask
        return scores.softmax(dim=-1) @ value

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused


def _is_plain(mask: Any, rest: dict[str, Any]) -> bool:
    """Return whether a call asks for nothing but a scale and a mask to be added.

    A Boolean mask may empty whole rows, of which torch makes zeros and a softmax NaN.
    """
    import torch

    asked = {name for name, value in rest.items() if value and name != "scale"}
    return not asked and (mask is None or mask.dtype != torch.bool)
