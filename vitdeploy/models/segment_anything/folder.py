"""Pruned SAM models as folders in transformers' layout: tensors and record under its names.

The exported image encoder has the layers of `SamModel` in a form of its own, so its names differ.
What is written beside the tensors is `models.pruned`'s matter.
"""

from typing import Any

import torch

from vitdeploy.models.checkpoint import StateDict
from vitdeploy.models.pruning_record import PruningRecord

_EXPORTED, _LAYERS = "blocks.", "vision_encoder.layers."
_TABLES = ("attn.row_table", "attn.column_table")
"""Made from the relative positions for one image size."""


def record_in_library(record: PruningRecord) -> PruningRecord:
    """Return a record of the exported encoder with the paths of `SamModel`."""
    return record.moved(_EXPORTED, _LAYERS)


def record_in_export(record: PruningRecord) -> PruningRecord:
    """Return a record of `SamModel` with the paths of the exported encoder."""
    return record.moved(_LAYERS, _EXPORTED)


def sam_state(whole: Any, encoder: Any) -> StateDict:
    """Return the tensors of a `SamModel` whose vision layers are those of an exported encoder.

    Args:
        whole: the `SamModel` that both parts were made of.
        encoder: `SamImageEncoder`, pruned.
    """
    kept: dict[str, torch.Tensor] = {
        name: value for name, value in whole.state_dict().items() if not name.startswith(_LAYERS)
    }
    for number, block in enumerate(encoder.blocks):
        for name, value in block.state_dict().items():
            if name not in _TABLES:
                kept[f"{_LAYERS}{number}.{name}"] = value
    for ours, theirs in (("projection", "patch_embed.projection"), ("neck", "neck")):
        for name, value in getattr(encoder, ours).state_dict().items():
            kept[f"vision_encoder.{theirs}.{name}"] = value
    return kept
