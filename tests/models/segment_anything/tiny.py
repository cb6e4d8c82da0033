"""Tiny SAM and SAM 2 folders, and exported parts as files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.model_folders import shake_
from tests.models.segment_anything.publisher import Size, Weights, draw_checkpoint
from vitdeploy.graph.save import save_model
from vitdeploy.models.spec import ExportPart
from vitdeploy.onnx_export import onnx_from_part

SIZE = Size()
_HIERA = {
    "backbone_config": {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "num_attention_heads": 1,
        "blocks_per_stage": [1, 2, 3, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 6, 2],
        "global_attention_blocks": [4],
        "image_size": [128, 128],
    },
    "backbone_channel_list": [128, 64, 32, 16],
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
}
"""Of SAM 2's image encoder, with every kind of block: windows, pooling, whole map."""


def sam_config(size: Size = SIZE, **vision: Any) -> Any:
    """transformers' configuration of a tiny SAM."""
    from transformers import SamConfig

    return SamConfig(
        vision_config={
            "hidden_size": size.width,
            "output_channels": size.channels,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.heads,
            "image_size": size.image,
            "window_size": size.window,
            "global_attn_indexes": list(size.whole),
            "num_pos_feats": size.channels // 2,
            "mlp_dim": 4 * size.width,
            **vision,
        },
        prompt_encoder_config={"hidden_size": size.channels, "image_size": size.image},
        mask_decoder_config={
            "hidden_size": size.channels,
            "mlp_dim": size.decoder_mlp,
            "num_attention_heads": size.decoder_heads,
            "iou_head_hidden_dim": size.channels,
        },
    )


def sam_model(size: Size = SIZE) -> Any:
    """A shaken `SamModel`, its frequencies as fine as a trained one's."""
    from transformers import SamModel

    torch.manual_seed(0)
    model = SamModel._from_config(sam_config(size), attn_implementation="eager")
    shake_(model)
    frequencies = torch.randn(2, size.channels // 2)
    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.copy_(frequencies)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(frequencies)
    return model.eval()


def write_sam_folder(folder: Path, model: Any) -> Path:
    """Write a folder of `save_pretrained`."""
    model.save_pretrained(folder)
    return folder


def write_publisher(folder: Path, size: Size = SIZE) -> tuple[Path, Path, Weights]:
    """Write config.json of a tiny SAM, and apart a checkpoint as the publisher saves it.

    Returns folder, checkpoint file, and its tensors.
    """
    sam_config(size).save_pretrained(folder)
    weights = draw_checkpoint(size)
    file = folder.parent / "sam_vit_tiny.pth"
    torch.save(weights, file)
    return folder, file, weights


def sam2_model() -> Any:
    """A shaken `Sam2Model` with every kind of block: windows, pooling, whole map."""
    from transformers import Sam2Config, Sam2Model

    config = Sam2Config(
        vision_config={**_HIERA, "fpn_hidden_size": 32},
        prompt_encoder_config={"hidden_size": 32, "image_size": 128},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
    )
    torch.manual_seed(0)
    model = Sam2Model._from_config(config, attn_implementation="eager")
    shake_(model)
    with torch.no_grad():
        frequencies = model.prompt_encoder.shared_embedding.positional_embedding
        model.shared_image_embedding.positional_embedding.copy_(frequencies)
    return model.eval()


def smooth_pictures(count: int, size: int) -> np.ndarray:
    """(count, 3, size, size) float32, different from each other."""
    cells = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(cells, size=(size, size), mode="bicubic").numpy()


def write_onnx(part: ExportPart, folder: Path, size: int, opset: int = 20) -> Path:
    """Write a part as the pipeline exports it."""
    path = folder / f"{part.name}.onnx"
    save_model(onnx_from_part(part, smooth_pictures(2, size), "dynamic", opset), path)
    return path


def sam2_video_model(**fields: Any) -> Any:
    """A shaken `Sam2VideoModel`, whose pointers are split in two for the memory."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    config = Sam2VideoConfig(
        vision_config={**_HIERA, "fpn_hidden_size": 128},
        prompt_encoder_config={"hidden_size": 128, "image_size": 128},
        mask_decoder_config={
            "hidden_size": 128,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
        image_size=128,
        memory_attention_hidden_size=128,
        memory_attention_feed_forward_hidden_size=64,
        memory_attention_num_layers=2,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=128,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=64,
        **fields,
    )
    torch.manual_seed(0)
    model = Sam2VideoModel._from_config(config, attn_implementation="eager")
    shake_(model)
    with torch.no_grad():
        frequencies = model.prompt_encoder.shared_embedding.positional_embedding
        model.shared_image_embedding.positional_embedding.copy_(frequencies)
        for layer in model.memory_attention.layers:  # so that what is remembered counts
            layer.cross_attn_image.q_proj.weight *= 8
            layer.cross_attn_image.o_proj.weight *= 40
    return model.eval()
