"""The checkpoint layout of facebookresearch/sam2, under transformers' names of `Sam2Model`.

`sam2_hiera_*.pt` and `sam2.1_hiera_*.pt` also hold the video memory, which is left out by name.
"""

from collections.abc import Mapping

import torch

from vitdeploy.models.checkpoint import StateDict
from vitdeploy.models.segment_anything.publisher import (
    SHARED_RULES,
    Rules,
    renamed_layers,
    with_shared_positions,
)

_PREFIXES = (
    ("image_encoder.trunk.", "vision_encoder.backbone."),
    ("image_encoder.neck.", "vision_encoder.neck."),
    ("sam_prompt_encoder.", "prompt_encoder."),
    ("sam_mask_decoder.", "mask_decoder."),
)
_RULES: Rules = (
    (r"vision_encoder\.backbone\.patch_embed\.proj",
     "vision_encoder.backbone.patch_embed.projection"),
    (r"vision_encoder\.backbone\.blocks\.(\d+)\.norm(\d)",
     r"vision_encoder.backbone.blocks.\1.layer_norm\2"),
    (r"vision_encoder\.neck\.convs\.(\d+)\.conv", r"vision_encoder.neck.convs.\1"),
    (r"(mask_decoder\.transformer\..+)\.out_proj", r"\1.o_proj"),
    (r"no_mem_embed", "no_memory_embedding"),
)  # fmt: skip
_VIDEO = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
)
"""What only videos need: SAM 2's tensors and those that 2.1 added."""
_KINDS_OF_POINT = 4


def sam2_from_publisher(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Return the image part of `weights` under transformers' names; tensors are not copied.

    Only the four embeddings of kinds of points, one tensor there, are. Names that no rule knows are
    kept, so that loading can list them as unexpected.
    """
    images = {
        _with_prefix(name): value for name, value in weights.items() if not name.startswith(_VIDEO)
    }
    result = renamed_layers(images, SHARED_RULES + _RULES)
    kinds = [f"prompt_encoder.point_embed.{index}.weight" for index in range(_KINDS_OF_POINT)]
    if all(kind in result for kind in kinds):
        table = torch.cat([result.pop(kind) for kind in kinds])
        result["prompt_encoder.point_embed.weight"] = table
    return with_shared_positions(result)


def _with_prefix(name: str) -> str:
    for there, here in _PREFIXES:
        if name.startswith(there):
            return here + name.removeprefix(there)
    return name
