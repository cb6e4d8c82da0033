"""The canonical graph: the form of an FP32 ONNX model that all later passes rely on.

`canonicalise_` runs the exact clean-ups and fusions in order and reports what it did not
recognise. Nothing here changes the function of the model beyond rounding, and nothing quantises.
"""

from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.errors import ModelError
from vitdeploy.graph import cleanup, fusion, naming
from vitdeploy.graph.attention import AttentionGraphSite, recognise_attention
from vitdeploy.graph.attention_scale import fold_attention_scales_
from vitdeploy.graph.channel_multiplier import depthwise_from_multiplied_
from vitdeploy.graph.folds import layerscale
from vitdeploy.graph.key_mask import widen_key_masks_
from vitdeploy.graph.surgery import remove_dead_

_DOMAINS = frozenset({"", "ai.onnx"})


@dataclass(frozen=True)
class CanonicalReport:
    """What `canonicalise_` did and what it left."""

    nodes_before: int
    nodes_after: int
    attention: tuple[AttentionGraphSite, ...]
    """The attention sites, in graph order, of the canonical graph."""
    fused: dict[str, int]
    """How many of each rewrite took place."""
    unrecognised: tuple[tuple[str, str], ...]
    """(node or site name, reason) of what looks like a known structure and is not one."""


def canonicalise_(model: ir.Model) -> CanonicalReport:
    """Bring `model` into canonical form, in place, and return what was done.

    Deterministic, and a second run changes nothing.

    Args:
        model: An FP32 model with one graph and no control flow; opset 20 for all fusions (17
            for LayerNormalization).

    Raises:
        ModelError: The graph has local functions, control flow or already quantised nodes.
    """
    _require_plain(model)
    before = len(model.graph)
    _name_batch_(model)
    cleanup.normalise_storage_(model)
    naming.name_nodes_(model)
    naming.clear_metadata_(model)
    fused = {
        "shape_arithmetic": cleanup.fold_shape_arithmetic_(model),
        "layer_norm": fusion.fuse_layer_norms_(model),
        "gelu": fusion.fuse_gelus_(model),
        "reshape": cleanup.fix_reshapes_(model),
        "layout_chain": cleanup.collapse_layout_chains_(model),
        "mask_guard": cleanup.remove_mask_guards_(model),
        "noop": cleanup.remove_noops_(model),
    }
    left = fusion.fold_batch_norms_(model)
    sites, not_attention = recognise_attention(model)
    with_scale = sum(bool(site.scale_nodes) for site in sites)
    unscaled = fold_attention_scales_(model, sites)
    fused["attention_scale"] = with_scale - len(unscaled)
    # After attention, for a factor on a query or key is the attention's to fold.
    fused["layer_scale"], refused = _fold_layer_scales_(model)
    fused["channel_multiplier"] = depthwise_from_multiplied_(model)
    fused["key_mask"] = widen_key_masks_(model)
    fused["noop"] += cleanup.remove_noops_(model)
    _finish_(model)
    return CanonicalReport(
        nodes_before=before,
        nodes_after=len(model.graph),
        attention=tuple(recognise_attention(model)[0]),
        fused=fused,
        unrecognised=(*left, *refused, *not_attention, *unscaled, *fusion.leftovers(model)),
    )


def _require_plain(model: ir.Model) -> None:
    if model.functions:
        raise ModelError(
            f"The ONNX model has {len(model.functions)} local functions; inline them first "
            "(onnx.inliner.inline_local_functions)."
        )
    for node in model.graph:
        if node.op_type in {"If", "Loop", "Scan"}:
            raise ModelError(
                f"The ONNX model has control flow ({node.op_type} {node.name}); export it with "
                "fixed control flow, for one image size."
            )
        if node.op_type in {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}:
            raise ModelError(
                f"The ONNX model is already quantised ({node.op_type} {node.name}); give the FP32 "
                "model."
            )


def _name_batch_(model: ir.Model) -> None:
    """Name an anonymous first axis of an input `batch`, so that it can be bound."""
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape):
            first = value.shape[0]
            if isinstance(first, ir.SymbolicDim) and first.value is None:
                value.shape = ir.Shape(["batch", *list(value.shape)[1:]])


def _fold_layer_scales_(model: ir.Model) -> tuple[int, list[tuple[str, str]]]:
    count, refused = 0, []
    for site in layerscale.find(model):
        reason = layerscale.applies(site)
        if reason is None:
            layerscale.apply_(model, site)
            count += 1
        else:
            refused.append((site.name, reason))
    return count, refused


def _finish_(model: ir.Model) -> None:
    remove_dead_(model.graph)
    naming.name_nodes_(model)
    naming.name_weights_(model)
    naming.clear_metadata_(model)
    model.graph.sort()
    cleanup.annotate_shapes_(model)
