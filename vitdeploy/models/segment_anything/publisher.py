"""The checkpoint layout of facebookresearch/segment-anything, under transformers' names.

`sam_vit_*.pth` and MobileSAM's `mobile_sam.pt` share the names of prompt encoder and mask decoder;
what SAM 2 changed in them is in `sam2_publisher`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch

from vitdeploy.errors import ModelError
from vitdeploy.models.checkpoint import StateDict

Rules: TypeAlias = tuple[tuple[str, str], ...]
"""Publisher's pattern of a whole name up to `.weight`, `.bias` or its end; transformers' form."""

_LAYER = r"(\d+)"
SHARED_RULES: Rules = (
    (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
     "prompt_encoder.shared_embedding.positional_embedding"),
    (rf"prompt_encoder\.point_embeddings\.{_LAYER}", r"prompt_encoder.point_embed.\1"),
    (r"prompt_encoder\.mask_downscaling\.0", "prompt_encoder.mask_embed.conv1"),
    (r"prompt_encoder\.mask_downscaling\.1", "prompt_encoder.mask_embed.layer_norm1"),
    (r"prompt_encoder\.mask_downscaling\.3", "prompt_encoder.mask_embed.conv2"),
    (r"prompt_encoder\.mask_downscaling\.4", "prompt_encoder.mask_embed.layer_norm2"),
    (r"prompt_encoder\.mask_downscaling\.6", "prompt_encoder.mask_embed.conv3"),
    (rf"mask_decoder\.transformer\.layers\.{_LAYER}\.norm(\d)",
     r"mask_decoder.transformer.layers.\1.layer_norm\2"),
    (r"mask_decoder\.transformer\.norm_final_attn",
     "mask_decoder.transformer.layer_norm_final_attn"),
    (r"mask_decoder\.output_upscaling\.0", "mask_decoder.upscale_conv1"),
    (r"mask_decoder\.output_upscaling\.1", "mask_decoder.upscale_layer_norm"),
    (r"mask_decoder\.output_upscaling\.3", "mask_decoder.upscale_conv2"),
)  # fmt: skip
_ENCODER_RULES = (
    (r"image_encoder\.pos_embed", "vision_encoder.pos_embed"),
    (r"image_encoder\.patch_embed\.proj", "vision_encoder.patch_embed.projection"),
    (rf"image_encoder\.blocks\.{_LAYER}\.norm(\d)", r"vision_encoder.layers.\1.layer_norm\2"),
    (rf"image_encoder\.blocks\.{_LAYER}\.(attn|mlp)\.(.+)", r"vision_encoder.layers.\1.\2.\3"),
    (r"image_encoder\.neck\.0", "vision_encoder.neck.conv1"),
    (r"image_encoder\.neck\.1", "vision_encoder.neck.layer_norm1"),
    (r"image_encoder\.neck\.2", "vision_encoder.neck.conv2"),
    (r"image_encoder\.neck\.3", "vision_encoder.neck.layer_norm2"),
)
_FEED_FORWARD = re.compile(
    r"(?P<head>.+\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|mlp))"
    r"\.layers\.(?P<index>\d+)"
)
_COMMON = {"neck", "patch_embed", "pos_embed"}
POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
IMAGE_POSITIONS = "shared_image_embedding.positional_embedding"
"""transformers has the prompt encoder's frequencies twice, and saves them once or twice."""


def is_publisher_layout(names: Iterable[str]) -> bool:
    """Return whether tensor names are those of a checkpoint of segment-anything."""
    return any(name.startswith("image_encoder.") for name in names)


def require_encoder(names: Iterable[str], kind: str, what: str) -> None:
    """Raise where a publisher's checkpoint has another image encoder than is wanted.

    Args:
        names: of all tensors.
        kind: what the encoder's large part is called: `blocks` (SAM), `layers` (MobileSAM) or
            `trunk` (SAM 2).
        what: the checkpoint, for the message.

    Raises:
        ModelError: names the model to ask for, or says that this variant is not known.
    """
    found = {name.split(".")[1] for name in names if name.startswith("image_encoder.")}
    if kind in found:
        return
    models = {
        "blocks": "sam-vitb, sam-vitl or sam-vith",
        "layers": "mobile-sam",
        "trunk": "sam2-tiny to sam2-large, or sam2.1-tiny to sam2.1-large",
    }
    advice = next((text for key, text in models.items() if key in found), None)
    if advice is not None:
        raise ModelError(f"{what} holds another image encoder; it is for MODEL {advice}.")
    strange = min(found - _COMMON or found)
    raise ModelError(
        f"{what} is a variant of Segment Anything with an image encoder that is not known here "
        f"(image_encoder.{strange}, ...). Supported: SAM's vision transformers (sam-vitb, "
        "sam-vitl, sam-vith), MobileSAM's TinyViT (mobile-sam) and SAM 2's Hiera (sam2-*)."
    )


def transformers_from_publisher(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Return `weights` under the names of transformers' `SamModel`; tensors are not copied.

    Names that no rule knows are kept, so that loading can list them as unexpected.
    """
    return with_shared_positions(renamed_layers(weights, SHARED_RULES + _ENCODER_RULES))


def without_encoder(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Return prompt encoder and mask decoder alone, under transformers' names."""
    kept = {n: value for n, value in weights.items() if not n.startswith("image_encoder.")}
    return renamed_layers(kept, SHARED_RULES)


def with_shared_positions(weights: Mapping[str, torch.Tensor]) -> StateDict:
    """Return `weights` with both copies of the frequencies, whichever one they have."""
    result = dict(weights)
    for there, missing in ((POSITIONS, IMAGE_POSITIONS), (IMAGE_POSITIONS, POSITIONS)):
        if there in result:
            result.setdefault(missing, result[there])
    return result


def renamed_layers(weights: Mapping[str, torch.Tensor], rules: Rules) -> StateDict:
    """Return `weights` renamed by `rules`, small MLPs by theirs; names no rule knows are kept."""
    compiled = [(re.compile(pattern), form) for pattern, form in rules]
    depths = _feed_forward_depths(weights)
    return {_new_name(name, compiled, depths): value for name, value in weights.items()}


def _new_name(
    name: str, rules: Iterable[tuple[re.Pattern[str], str]], depths: Mapping[str, int]
) -> str:
    stem, dot, kind = name.rpartition(".")
    stem, suffix = (stem, dot + kind) if kind in ("weight", "bias") else (name, "")
    for pattern, form in rules:
        if pattern.fullmatch(stem):
            return pattern.sub(form, stem) + suffix
    match = _FEED_FORWARD.fullmatch(stem)
    if match is None:
        return name
    index, last = int(match["index"]), depths[match["head"]]
    layer = {0: "proj_in", last: "proj_out"}.get(index, f"layers.{index - 1}")
    return f"{match['head']}.{layer}{suffix}"


def _feed_forward_depths(names: Iterable[str]) -> dict[str, int]:
    """Return the index of the last layer of each small MLP of the decoder."""
    depths: dict[str, int] = {}
    for name in names:
        match = _FEED_FORWARD.match(name)
        if match is not None:
            depths[match["head"]] = max(depths.get(match["head"], 0), int(match["index"]))
    return depths
