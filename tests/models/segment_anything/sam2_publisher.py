"""A tiny SAM 2 under the names of facebookresearch/sam2, written down from its modules.

`sam2/modeling`: hieradet.py, image_encoder.py, sam/prompt_encoder.py, sam/mask_decoder.py,
sam/transformer.py and sam2_base.py.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

Named = Iterator[tuple[str, Tensor]]


def checkpoint_of(model: Any) -> dict[str, Tensor]:
    """The tensors of transformers' `Sam2Model`, and some of a video memory beside them."""
    named = dict(_encoder(model.vision_encoder))
    named |= dict(_prompts("sam_prompt_encoder", model.prompt_encoder))
    named |= dict(_decoder("sam_mask_decoder", model.mask_decoder))
    named["no_mem_embed"] = model.no_memory_embedding
    named |= {name: torch.ones(2) for name in VIDEO_NAMES}
    return {name: value.detach().clone() for name, value in named.items()}


VIDEO_NAMES = (
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "mask_downsample.weight",
    "obj_ptr_proj.layers.0.weight",
    "obj_ptr_tpos_proj.bias",
    "memory_attention.layers.3.cross_attn_image.k_proj.weight",
    "memory_attention.norm.weight",
    "memory_encoder.mask_downsampler.encoder.12.bias",
    "memory_encoder.fuser.layers.1.gamma",
    "memory_encoder.out_proj.weight",
)


def _both(name: str, layer: nn.Module) -> Named:
    yield f"{name}.weight", layer.weight
    yield f"{name}.bias", layer.bias


def _mlp(name: str, mlp: Any) -> Named:
    for index, layer in enumerate([mlp.proj_in, *mlp.layers, mlp.proj_out]):
        yield from _both(f"{name}.layers.{index}", layer)


def _encoder(vision: Any) -> Named:
    trunk, backbone = "image_encoder.trunk", vision.backbone
    yield f"{trunk}.pos_embed", backbone.pos_embed
    yield f"{trunk}.pos_embed_window", backbone.pos_embed_window
    yield from _both(f"{trunk}.patch_embed.proj", backbone.patch_embed.projection)
    for index, block in enumerate(backbone.blocks):
        name = f"{trunk}.blocks.{index}"
        yield from _both(f"{name}.norm1", block.layer_norm1)
        yield from _both(f"{name}.attn.qkv", block.attn.qkv)
        yield from _both(f"{name}.attn.proj", block.attn.proj)
        yield from _both(f"{name}.norm2", block.layer_norm2)
        yield from _mlp(f"{name}.mlp", block.mlp)
        if block.dim != block.dim_out:
            yield from _both(f"{name}.proj", block.proj)
    for index, layer in enumerate(vision.neck.convs):
        yield from _both(f"image_encoder.neck.convs.{index}.conv", layer)


def _prompts(name: str, encoder: Any) -> Named:
    frequencies = encoder.shared_embedding.positional_embedding
    yield f"{name}.pe_layer.positional_encoding_gaussian_matrix", frequencies
    for kind in range(4):
        yield f"{name}.point_embeddings.{kind}.weight", encoder.point_embed.weight[kind : kind + 1]
    yield f"{name}.not_a_point_embed.weight", encoder.not_a_point_embed.weight
    yield f"{name}.no_mask_embed.weight", encoder.no_mask_embed.weight
    mask = encoder.mask_embed
    layers = {0: mask.conv1, 1: mask.layer_norm1, 3: mask.conv2, 4: mask.layer_norm2, 6: mask.conv3}
    for index, layer in layers.items():
        yield from _both(f"{name}.mask_downscaling.{index}", layer)


def _decoder(name: str, decoder: Any) -> Named:
    for token in ("iou_token", "mask_tokens", "obj_score_token"):
        yield f"{name}.{token}.weight", getattr(decoder, token).weight
    for index, block in enumerate(decoder.transformer.layers):
        layer = f"{name}.transformer.layers.{index}"
        for kind in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            yield from _attention(f"{layer}.{kind}", getattr(block, kind))
        yield from _mlp(f"{layer}.mlp", block.mlp)
        for norm in range(1, 5):
            yield from _both(f"{layer}.norm{norm}", getattr(block, f"layer_norm{norm}"))
    final = decoder.transformer.final_attn_token_to_image
    yield from _attention(f"{name}.transformer.final_attn_token_to_image", final)
    yield from _both(
        f"{name}.transformer.norm_final_attn", decoder.transformer.layer_norm_final_attn
    )
    yield from _both(f"{name}.output_upscaling.0", decoder.upscale_conv1)
    yield from _both(f"{name}.output_upscaling.1", decoder.upscale_layer_norm)
    yield from _both(f"{name}.output_upscaling.3", decoder.upscale_conv2)
    yield from _both(f"{name}.conv_s0", decoder.conv_s0)
    yield from _both(f"{name}.conv_s1", decoder.conv_s1)
    for index, mlp in enumerate(decoder.output_hypernetworks_mlps):
        yield from _mlp(f"{name}.output_hypernetworks_mlps.{index}", mlp)
    yield from _mlp(f"{name}.iou_prediction_head", decoder.iou_prediction_head)
    yield from _mlp(f"{name}.pred_obj_score_head", decoder.pred_obj_score_head)


def _attention(name: str, attention: Any) -> Named:
    for own, there in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
        yield from _both(f"{name}.{there}_proj", getattr(attention, f"{own}_proj"))
